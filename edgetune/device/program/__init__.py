"""The program that builds, verifies and times engines on a device.

Plain Python 3.8 and its standard library, since a device has nothing else that can be counted on; it imports
nothing of the rest of edgetune. `edgetune bundle` ships it as one file; a workstation with TensorRT uses the
same modules.
"""
