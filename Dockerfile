# A workstation image: fine-tune, export, quantize, check. Engines are built on the device, not here.
#   docker build -t edgetune .
#   docker run --rm -v "$PWD:/work" edgetune quickstart
#   docker run --rm --gpus all -v "$PWD:/work" edgetune run recipe.yaml
FROM python:3.12-slim
WORKDIR /opt/edgetune
COPY pyproject.toml README.md LICENSE ./
COPY edgetune edgetune
COPY profiles profiles
COPY calibration calibration
RUN pip install --no-cache-dir . && rm -rf /opt/edgetune
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["edgetune"]
CMD ["--help"]
