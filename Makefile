# Everything runs with Go, make and git alone. What a machine lacks is named, and what was therefore not run is
# listed at the end of `make test`; with CI=true that is a failure.

GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= $(if $(CI),3s,10s)
MODULES = $(patsubst %/go.mod,%,$(shell find . -name go.mod -not -path '*/testdata/*'))

.PHONY: help test soak check bench demo build setup lint imports fuzz

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

test: setup check ## everything: set up, check, all tests of all modules, what was not run
	@dir=$$(mktemp -d); $(GO) build -o $$dir/ ./...; status=$$?; rm -rf $$dir; exit $$status
	$(GO) run ./internal/testreport

soak: setup ## all tests with the full counts (millions of rows, tens of thousands of requests): an hour or more
	HOLDFAST_SOAK=1 $(GO) run ./internal/testreport -timeout 3h

check: lint imports fuzz ## gofmt, vet, staticcheck, import direction, every fuzz target for FUZZTIME (10s)

bench: ## the benchmark against other session libraries, as a table with ratios
	cd bench && $(GO) run .

demo: ## the demo: three servers, a gateway and a page to try it
	$(GO) run ./cmd/holdfast demo

build: ## bin/holdfast
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/holdfast

setup: ## install the servers that the tests use (Debian, root), or say what to install
	@sh .ci/setup

lint:
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not formatted, run gofmt -w on:" $$files; exit 1; }
	@set -e; for dir in $(MODULES); do echo "vet and staticcheck in $$dir"; \
		(cd $$dir && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...); done

imports:
	$(GO) test ./internal/imports

fuzz:
	@FUZZTIME=$(FUZZTIME) GO=$(GO) sh .ci/fuzz
