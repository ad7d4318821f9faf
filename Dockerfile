# The package in an image, which runs the demo by default; data and results are in the volume:
#   docker build --tag video-iresnet .
#   docker run --rm --volume video-iresnet:/work video-iresnet
# Other scripts, with a folder of this machine and room for batches between processes:
#   docker run --rm --shm-size 8g --user "$(id -u)" --volume "$PWD:/work" video-iresnet video-iresnet doctor
# PyTorch is the build for CUDA, which computes on CPUs too; for GPUs, run with --gpus all.
FROM python:3.13-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.13-slim
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir /wheel/*.whl
RUN useradd --create-home --uid 1000 demo && install --directory --owner demo /work
USER 1000
WORKDIR /work
VOLUME /work
CMD ["sh", "-c", "test -e data/moving_shapes/classes.txt || video-iresnet moving_shapes --out data/moving_shapes && exec video-iresnet run_net --cfg configs/demo/iR3D18.yaml"]
