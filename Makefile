# The one place that knows how extentd is built, tested and checked. `make help`
# lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules

GO      ?= go
BIN     := .bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGE   ?= extentd:$(VERSION)

# How long one package's tests may take.
TEST_TIMEOUT ?= 20m
# How long each fuzz target runs. FUZZBUDGET, in seconds, bounds all of them together.
FUZZTIME     ?= 5s
FUZZBUDGET   ?=
# How long the soak tests run.
SOAK         ?= 1h

# What the tests and the benchmarks run beside extentd, as COMMAND:DEBIAN-PACKAGE.
# The race detector needs a C compiler; the product does not.
TEST_NEEDS  := qemu-img:qemu-utils curl:curl nginx:nginx-light gcc:gcc gcc:libc6-dev \
	nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdsh:python3-libnbd nbdkit:nbdkit fio:fio
BENCH_NEEDS := nginx:nginx-light wrk:wrk curl:curl nbdcopy:libnbd-bin nbdkit:nbdkit fio:fio qemu-img:qemu-utils

TOOLS := $(addprefix $(BIN)/,oapi-codegen golangci-lint gotestsum)

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

.PHONY: fmt
fmt: $(BIN)/golangci-lint ## Format the Go code
	$(BIN)/golangci-lint fmt ./...

.PHONY: lint
lint: $(BIN)/golangci-lint ## Lint: layers, style, likely mistakes, file length
	CGO_ENABLED=0 $(BIN)/golangci-lint run ./...
	scripts/file-length

.PHONY: test
test: $(BIN)/gotestsum ## Run all tests under the race detector (installs the tools they need)
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

.PHONY: bench
bench: ## Measure extentd beside its peers (installs them)
	scripts/debian-packages $(BENCH_NEEDS)
	$(GO) run ./bench

.PHONY: check-static
check-static: build ## Fail if the binary needs a dynamic loader
	$(GO) version -m $(BIN)/extentd | grep -w 'CGO_ENABLED=0'
	@loader=$$(ldd $(BIN)/extentd 2>&1 || true); \
	case "$$loader" in \
	*'not a dynamic executable'*) echo "$(BIN)/extentd is static" ;; \
	*) echo "$(BIN)/extentd is not static: $$loader" >&2; exit 1 ;; \
	esac

.PHONY: image
image: ## Build the container image with docker, podman or buildah
	@for tool in docker podman buildah; do \
		command -v $$tool >/dev/null || continue; \
		set -x; exec $$tool build --build-arg VERSION=$(VERSION) --tag $(IMAGE) .; \
	done; \
	echo 'make image needs docker, podman or buildah' >&2; exit 1

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN)
