# Two images, one for each side. Nothing here has a password or a key, and neither runs as root.
#
# The workstation fine-tunes (on a GPU where there is one), exports, quantizes, checks and packs a bundle:
#   docker build --target workstation --build-arg UID="$(id -u)" -t edgetune .
#   docker run --rm -v "$PWD:/work" edgetune quickstart
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" edgetune run recipe.yaml
#   docker run --rm -v "$PWD:/work" edgetune bundle runs/photos -o bundle
#
# The device works a bundle off inside NVIDIA's image for its JetPack. A bundle needs no container: this is for
# those who want the device itself untouched. Build it on the device; the results lie in the bundle:
#   docker build --target device --build-arg UID="$(id -u)" -t edgetune-device .
#   docker run --rm --runtime nvidia -v "$PWD/bundle:/bundle" edgetune-device
#   docker run --rm --runtime nvidia -v "$PWD/bundle:/bundle" edgetune-device probe
# Lock the clocks outside, beforehand: nvpmodel and jetson_clocks are not reached from inside. A plan that was
# built in a container runs with that container's TensorRT.
#
# JETPACK_IMAGE, by the JetPack on the device (NVIDIA publishes no l4t-jetpack image for JetPack 7; the one named
# holds TensorRT 10.16.1 where JetPack 7.2 holds 10.16.2):
#   5.1  nvcr.io/nvidia/l4t-jetpack:r35.4.1  TensorRT 8.5.2
#   6.0  nvcr.io/nvidia/l4t-jetpack:r36.3.0  TensorRT 8.6.2
#   6.2  nvcr.io/nvidia/l4t-jetpack:r36.4.0  TensorRT 10.3.0
#   7.2  nvcr.io/nvidia/tensorrt:26.05-py3   TensorRT 10.16.1
ARG PYTHON=3.12
ARG JETPACK_IMAGE=nvcr.io/nvidia/l4t-jetpack:r36.4.0

FROM ${JETPACK_IMAGE} AS device
ARG UID=1000
# The GPU's device files belong to the group video.
RUN useradd --no-log-init --create-home --non-unique --uid ${UID} --groups video user
# By its name: a base may have another user with this number, who is not in that group.
# hadolint ignore=DL3066
USER user
WORKDIR /bundle
ENTRYPOINT ["python3", "/bundle/edgetune.pyz"]
CMD ["run"]

FROM python:${PYTHON}-slim AS workstation
ARG TORCH=2.15.0
# From what changes least to what changes most: torch with its CUDA libraries, all else that is needed, the sources.
RUN pip install --no-cache-dir torch==${TORCH}
WORKDIR /opt/edgetune
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); print(*p['build-system']['requires'], *p['project']['dependencies'], *p['project']['optional-dependencies']['text'], sep='\n')" > needed.txt \
    && pip install --no-cache-dir torch==${TORCH} -r needed.txt
COPY README.md LICENSE ./
COPY profiles profiles
COPY calibration calibration
COPY edgetune edgetune
ARG UID=1000
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --no-log-init --create-home --non-unique --uid ${UID} user
# hadolint ignore=DL3066
USER user
WORKDIR /work
ENTRYPOINT ["edgetune"]
CMD ["--help"]
