"""Folders of images: read, cut into splits, decoded, augmented, chosen for calibration."""
