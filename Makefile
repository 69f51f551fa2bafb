# Two commands do everything on a fresh Debian 12 (root, git, make, Go):
#   make demo    from a Dockerfile to a running container, and through a registry
#   make test    every test
export CGO_ENABLED = 0
GOFLAGS_BUILD = -trimpath -tags grpcnotrace -ldflags='-s -w $(VERSION_FLAGS)'
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
VERSION_FLAGS =
PROGRAMS = $(notdir $(wildcard cmd/onggi*))

.PHONY: build test demo bench vm init reference install clean help
build: ## all programs, in bin/
	@mkdir -p bin
	go build $(GOFLAGS_BUILD) -o bin/ ./cmd/...
	install -m 755 "$$(test/clients/install onggi-compose)" bin/onggi-compose

test: ## every test, set-up included (as root)
	@test/setup test
	@test/run

demo: build ## the tour, set-up included (as root); leaves nothing behind
	@test/setup demo
	@test/demo

bench: build ## medians and ratios beside Docker and Podman, where installed (as root)
	@test/setup bench
	@test/bench/run

vm: ## the lane with control groups v2 only
	@test/setup test
	@test/vm/run

init: ## rebuild the embedded onggi-init (needs gcc)
	$(MAKE) -C cmd/onggi-init

reference: ## write docs/reference/commands.md anew
	go test -tags grpcnotrace ./internal/cli -run TestReferenceIsUpToDate -rewrite

install: build ## into $(PREFIX)/bin
	install -d $(DESTDIR)$(or $(PREFIX),/usr/local)/bin
	install -m 755 bin/* $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/

clean:
	rm -rf bin .cache

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
