# convbn on a CPU: `docker build -t convbn . && docker run --rm -v "$PWD:/work" convbn fuse model.onnx -o folded.onnx`
FROM python:3.12-slim-bookworm

# PyTorch's own index has a build without CUDA; the registry's is gigabytes larger.
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch

COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt '/src[torch,rtx,images]' && rm -rf /src \
    && useradd --create-home convbn
USER 1000
WORKDIR /work
ENTRYPOINT ["convbn"]
CMD ["--help"]
