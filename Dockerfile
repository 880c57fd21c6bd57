# Dependencies are compiled in a layer of their own: a change in src/ does not compile them again.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
RUN mkdir -p src tests/it bench/src bench/benches \
    && echo 'fn main() {}' | tee src/main.rs bench/src/main.rs > tests/it/main.rs \
    && touch bench/benches/time.rs bench/benches/instructions.rs \
    && touch src/lib.rs \
    && cargo build --release --locked
COPY . .
# The empty sources above are newer than the copied ones may be.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data nightshift \
    && install -d -o nightshift -m 0700 /data
COPY --from=build /build/target/release/nightshift /usr/local/bin/nightshift
USER nightshift
WORKDIR /data
VOLUME /data
EXPOSE 8080
ENV NIGHTSHIFT_SERVER__LISTEN=0.0.0.0:8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["curl", "-fsS", "http://127.0.0.1:8080/readyz"]
# Longer than worker.shutdown_grace, or answers in flight are cut off: docker stop -t 40
STOPSIGNAL SIGTERM
ENTRYPOINT ["nightshift"]
CMD ["serve"]
