# The dependencies are compiled in a stage of their own, which changes with a Cargo.toml or
# Cargo.lock, and with nothing else.
FROM rust:1.95-slim-bookworm AS manifests
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY bench bench
# Cargo wants to see the sources that the manifests of the workspace name: empty ones will do.
RUN find bench -type f ! -name Cargo.toml ! -name '*.rs' -delete \
    && find bench -name '*.rs' -exec truncate --size 0 '{}' + \
    && mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs

FROM rust:1.95-slim-bookworm AS dependencies
WORKDIR /build
ENV CARGO_PROFILE_RELEASE_STRIP=symbols
COPY --from=manifests /build .
RUN cargo build --release --locked --package nightshift

FROM dependencies AS build
COPY config.example.toml ./
COPY migrations migrations
COPY src src
# Cargo goes by times, and the empty sources may be newer than the real ones.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --package nightshift

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
RUN groupadd --system --gid 10001 nightshift \
    && useradd --system --uid 10001 --gid 10001 --home-dir /data nightshift \
    && install -d -o nightshift -g nightshift /data
COPY --from=build /build/target/release/nightshift /usr/local/bin/
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
ENV NIGHTSHIFT_SERVER__LISTEN=0.0.0.0:8080
# Whether the process lives. Not /readyz: a container that is started again because the database
# is away loses the answers that it holds in memory. Bash speaks HTTP well enough for this.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 CMD ["bash", "-c", "\
    exec 3<>/dev/tcp/127.0.0.1/${NIGHTSHIFT_SERVER__LISTEN##*:} \
    && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 \
    && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
# SIGTERM lets calls in flight finish for worker.shutdown_grace (30 s): `docker stop -t 45`, since
# Docker by itself waits 10 s only.
STOPSIGNAL SIGTERM
ENTRYPOINT ["nightshift"]
CMD ["serve"]
