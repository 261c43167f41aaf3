# graphprune in a container: docker build -t graphprune . && docker run --rm -v "$PWD:/work" graphprune analyze model.onnx
# More frameworks: docker build --build-arg EXTRAS=mlflow,openvino -t graphprune .
FROM python:3.12.12-slim-bookworm AS build
ARG EXTRAS=""
WORKDIR /source
COPY . .
RUN python -m venv /opt/graphprune \
    && /opt/graphprune/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12.12-slim-bookworm
COPY --from=build /opt/graphprune /opt/graphprune
ENV PATH="/opt/graphprune/bin:$PATH" HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["graphprune"]
CMD ["--help"]
