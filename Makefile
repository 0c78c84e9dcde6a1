# The one place that knows how extentd is built, tested and checked. `make help`
# lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules

GO      ?= go
BIN     := .bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# What the container image is built for.
ARCHITECTURES ?= amd64 arm64

# How long one package's tests may take.
TEST_TIMEOUT ?= 20m
# How long each fuzz target runs. FUZZBUDGET, in seconds, bounds all of them together.
FUZZTIME     ?= 5s
FUZZBUDGET   ?=
# The first seed of api-fuzz.
SEED         ?= 1
# How long the soak tests run.
SOAK         ?= 1h

# What the tests and the benchmarks run beside extentd, as COMMAND:DEBIAN-PACKAGE.
# The race detector needs a C compiler; the product does not.
TEST_NEEDS  := qemu-img:qemu-utils curl:curl nginx:nginx-light gcc:gcc gcc:libc6-dev \
	nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdsh:python3-libnbd nbdkit:nbdkit fio:fio xxd:xxd
NODE_NEEDS  := node:nodejs npm:npm
PYTHON_NEEDS := python3:python3 python3/venv:python3-venv python3/ensurepip:python3-venv
IMAGEIO_NEEDS := gcc:gcc gcc:libc6-dev python3:python3-dev python3/venv:python3-venv
BENCH_NEEDS := nginx:nginx-light wrk:wrk curl:curl nbdcopy:libnbd-bin nbdkit:nbdkit fio:fio qemu-img:qemu-utils

TOOLS := $(addprefix $(BIN)/,oapi-codegen golangci-lint gotestsum oasdiff)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the static binary, .bin/extentd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/extentd .

.PHONY: tools
tools: $(TOOLS) ## Build the tools that tools/go.mod pins

$(BIN)/oapi-codegen:  package = github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen
$(BIN)/golangci-lint: package = github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BIN)/gotestsum:     package = gotest.tools/gotestsum
$(BIN)/oasdiff:       package = github.com/oasdiff/oasdiff
$(TOOLS): tools/go.mod tools/go.sum
	CGO_ENABLED=0 $(GO) -C tools build -trimpath -ldflags '-s -w' -o ../$@ $(package)
	@touch $@

.PHONY: generate
generate: $(BIN)/oapi-codegen ## Generate the server's and the client's code from openapi.yaml
	cd api && ../$(BIN)/oapi-codegen -config oapi.yaml ../openapi.yaml
	cd client && ../$(BIN)/oapi-codegen -config oapi.yaml ../openapi.yaml

.PHONY: check-generated
check-generated: generate ## Fail if generated code is not what openapi.yaml says
	git diff --exit-code -- '*.gen.go'
	@new=$$(git ls-files --others --exclude-standard -- '*.gen.go'); \
	if [ -n "$$new" ]; then echo "generated but not committed: $$new" >&2; exit 1; fi

# What is generated from openapi.yaml for other languages, and what checks it,
# is installed once, and again when what pins it changes.
SPECTRAL      := $(BIN)/apilint/node_modules/.bin/spectral
SCHEMATHESIS  := $(BIN)/apifuzz/venv/bin/schemathesis
SDK_TYPESCRIPT := $(BIN)/sdk/typescript/dist/main.js
SDK_PYTHON    := $(BIN)/sdk/python/extentd_client/py.typed

$(SPECTRAL): tools/apilint/package.json tools/apilint/package-lock.json
	scripts/debian-packages $(NODE_NEEDS)
	scripts/npm-ci $(<D) $(BIN)/apilint
	@touch $@

$(SCHEMATHESIS): tools/apifuzz/requirements.txt
	scripts/debian-packages $(PYTHON_NEEDS)
	scripts/venv $< $(BIN)/apifuzz/venv
	@touch $@

$(BIN)/sdk/typescript/node_modules/.package-lock.json: sdk/typescript/package.json sdk/typescript/package-lock.json
	scripts/debian-packages $(NODE_NEEDS)
	scripts/npm-ci $(<D) $(BIN)/sdk/typescript
	@touch $@

$(SDK_TYPESCRIPT): $(BIN)/sdk/typescript/node_modules/.package-lock.json openapi.yaml $(wildcard sdk/typescript/*.js* sdk/typescript/src/*.ts)
	cp -R sdk/typescript/. $(BIN)/sdk/typescript
	cd $(BIN)/sdk/typescript && npm run --silent generate && npm run --silent build
	@touch $@

$(BIN)/sdk/python/venv/bin/openapi-python-client: sdk/python/requirements-dev.txt sdk/python/requirements.txt
	scripts/debian-packages $(PYTHON_NEEDS)
	scripts/venv $< $(BIN)/sdk/python/venv
	@touch $@

$(SDK_PYTHON): $(BIN)/sdk/python/venv/bin/openapi-python-client openapi.yaml $(wildcard sdk/python/*)
	cp -R sdk/python/. $(BIN)/sdk/python
	cd $(BIN)/sdk/python && export PATH="$$PWD/venv/bin:$$PATH" && \
		openapi-python-client generate --path ../../../openapi.yaml --config generator.yaml --meta none \
			--output-path extentd_client --overwrite --fail-on-warning && \
		mypy --config-file mypy.ini .
	@touch $@

.PHONY: sdk
sdk: $(SDK_TYPESCRIPT) $(SDK_PYTHON) ## Generate the TypeScript and Python clients, and compile what uses them

.PHONY: api-lint
api-lint: $(SPECTRAL) $(BIN)/oasdiff ## Lint openapi.yaml, and fail if it breaks clients of the last release
	$(SPECTRAL) lint --fail-severity=hint --ruleset tools/apilint/ruleset.yaml openapi.yaml
	scripts/api-breaking $(BIN)/oasdiff

.PHONY: api-fuzz
api-fuzz: $(SCHEMATHESIS) build ## Send 10,000 generated requests to a server (SEED repeats some of them)
	scripts/debian-packages qemu-img:qemu-utils
	SEED=$(SEED) scripts/api-fuzz $(BIN)/extentd

.PHONY: fmt
fmt: $(BIN)/golangci-lint ## Format the Go code
	$(BIN)/golangci-lint fmt ./...

.PHONY: lint
lint: $(BIN)/golangci-lint ## Lint: layers, style, likely mistakes, file length
	CGO_ENABLED=0 $(BIN)/golangci-lint run ./...
	scripts/file-length

.PHONY: test
test: $(BIN)/gotestsum $(BIN)/oasdiff $(SPECTRAL) sdk ## Run all tests under the race detector (installs the tools they need)
	@rm -f $(BIN)/test-summary
	scripts/debian-packages $(TEST_NEEDS)
	$(GO) vet ./...
	CGO_ENABLED=1 $(BIN)/gotestsum --format pkgname --format-hide-empty-pkg \
		--post-run-command scripts/test-summary -- \
		-race -count=1 -timeout $(TEST_TIMEOUT) ./...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) FUZZBUDGET=$(FUZZBUDGET) scripts/fuzz

.PHONY: soak
soak: ## Run the long randomised tests for SOAK
	scripts/debian-packages $(TEST_NEEDS)
	SOAK=$(SOAK) $(GO) test -count=1 -timeout 0 -run 'Soak|Differential|Twins' ./...

# The peer whose API --dialect imageio speaks; its package is built from source.
IMAGEIO := $(BIN)/imageio/bin/ovirt-imageio

$(IMAGEIO): bench/requirements.txt
	scripts/debian-packages $(IMAGEIO_NEEDS)
	scripts/venv $< $(BIN)/imageio
	@touch $@

.PHONY: bench
bench: $(IMAGEIO) ## Measure extentd beside its peers (installs them)
	scripts/debian-packages $(BENCH_NEEDS)
	$(GO) run ./bench

.PHONY: test-imageio
test-imageio: $(IMAGEIO) ## Run the tests with the client library of oVirt imageio (installs it)
	$(GO) test -count=1 -tags imageio -run ImageioClient ./test

.PHONY: check-static
check-static: build ## Fail if the binary needs a dynamic loader
	$(GO) version -m $(BIN)/extentd | grep -w 'CGO_ENABLED=0'
	@loader=$$(ldd $(BIN)/extentd 2>&1 || true); \
	case "$$loader" in \
	*'not a dynamic executable'*) echo "$(BIN)/extentd is static" ;; \
	*) echo "$(BIN)/extentd is not static: $$loader" >&2; exit 1 ;; \
	esac

.PHONY: image
image: ## Build the container image, for two architectures and without a container engine, as an OCI layout
	for arch in $(ARCHITECTURES); do \
		GOARCH=$$arch GOOS=linux $(MAKE) --no-print-directory build BIN=$(BIN)/linux-$$arch VERSION=$(VERSION); \
	done
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} \
		$(GO) -C tools/image run . -out ../../$(BIN)/image -version $(VERSION) \
		$(foreach arch,$(ARCHITECTURES),linux/$(arch)=../../$(BIN)/linux-$(arch)/extentd)
	@echo '$(BIN)/image is an OCI layout. To use it, one of:'
	@echo '    podman pull oci:$(BIN)/image:$(VERSION)'
	@echo '    skopeo copy oci:$(BIN)/image:$(VERSION) docker-daemon:extentd:$(VERSION)'
	@echo '    skopeo copy --all oci:$(BIN)/image:$(VERSION) docker://REGISTRY/extentd:$(VERSION)'
	@echo '    crane push $(BIN)/image REGISTRY/extentd:$(VERSION)'

.PHONY: check-deploy
check-deploy: ## Test the container image and the Kubernetes manifests
	scripts/debian-packages qemu-img:qemu-utils update-ca-certificates:ca-certificates
	$(GO) -C tools/image vet ./...
	$(GO) -C tools/image test -count=1 ./...
	$(GO) -C test/deploy vet ./...
	$(GO) -C test/deploy test -count=1 ./...

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN)
