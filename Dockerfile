# The image holds the static binary, CA certificates and an empty /images. It
# runs as an unprivileged user, also on a read-only root file system. `make image`
# makes the same one without a container engine, for two architectures.
#
# In a container the default address, loopback, reaches nobody outside. Another
# one needs authentication, or --insecure where whoever can reach the port may
# read every image:
#
#   docker run --rm --read-only -p 127.0.0.1:7080:7080 \
#     -v "$PWD/images:/images" --user "$(id -u):$(id -g)" \
#     extentd serve --listen :7080 --insecure /images
#
# In a pod the other containers share the loopback interface: there the default
# command will do.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/extentd . \
    && mkdir /out/images

FROM scratch
ARG VERSION=unknown
LABEL org.opencontainers.image.title="extentd" \
      org.opencontainers.image.description="Serves disk images over HTTP: where their blocks are, and what is in them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/LICENSE /
COPY --from=build /out/extentd /
COPY --from=build --chown=65532:65532 /out/images /images
USER 65532:65532
EXPOSE 7080
ENTRYPOINT ["/extentd"]
CMD ["serve", "/images"]
