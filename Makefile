# Everything a developer does with flare. `make help` lists the targets.

SHELL       := /bin/bash
ROOT        := $(CURDIR)
BUILD       := $(ROOT)/build
BIN         := $(BUILD)/bin
# Only what changes the binaries' own version; images are tagged by content.
VERSION     ?= 2.0.0-dev
LDFLAGS     := -X main.version=$(VERSION)
GO          ?= go
# -buildvcs: a source archive without .git builds the same binaries.
export GOFLAGS := -buildvcs=false

RELEASE     ?= flare
NAMESPACE   ?= flare
SUITE       ?= smoke
FUZZTIME    ?= 30s

.DEFAULT_GOAL := help

##@ Use
.PHONY: help up down run status
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## A Kubernetes on this machine (or CONTEXT=name: that one) with flare installed and Ready
	@BUILD=$(BUILD) RELEASE=$(RELEASE) NAMESPACE=$(NAMESPACE) CONTEXT=$(CONTEXT) VALUES=$(VALUES) e2e/up.sh

down: ## Remove what `make up` made: the release, its namespace, the Kubernetes of this machine
	@BUILD=$(BUILD) RELEASE=$(RELEASE) NAMESPACE=$(NAMESPACE) CONTEXT=$(CONTEXT) e2e/down.sh

run: build ## The same 2 x 2 cluster as plain processes, without Kubernetes (stops with Ctrl-C)
	@$(GO) run ./e2e/cmd/flare-local -bin $(BIN)

##@ Build
.PHONY: deps build proto crd images clean
deps: ## Debian packages that building and testing need (installs what is missing)
	@e2e/deps.sh

build: deps ## The three programs, into build/bin
	@mkdir -p $(BIN)
	@echo "build  flared"; $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./agent/cmd/flared
	@for p in agent/cmd/flare-agent controller/cmd/flare-controller; do \
	  echo "build  $$(basename $$p)"; CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./$$p || exit 1; done

proto: ## Generated Go from proto/flare (lints first)
	@$(MAKE) -s tools
	cd proto && PATH=$(BIN):$$PATH buf lint && PATH=$(BIN):$$PATH buf generate

crd: ## The CustomResourceDefinition and deep copies from controller/api/v1
	@$(MAKE) -s tools
	$(GO) generate ./controller/api/v1

images: deps ## OCI and docker-loadable image archives, into build/images
	@$(GO) run ./images/build -out $(BUILD)/images -version $(VERSION)

clean: ## Remove build/ (binaries, images, caches of the local Kubernetes)
	rm -rf $(BUILD)

.PHONY: tools
tools:
	@mkdir -p $(BIN)
	@cd .tools && CGO_ENABLED=0 $(GO) build -o $(BIN)/ tool

##@ Check
.PHONY: test test-kill test-simulation walk check-model fuzz lint e2e bench bench-replication bench-failover bench-controller bench-packages
test: deps ## All unit and integration tests, with the race detector
	e2e/test.sh

test-kill: deps ## kill -9 of masters and replicas under load, ROUNDS (200) times; SEED=number repeats a run
	FLARE_KILL_ROUNDS=$(or $(ROUNDS),200) FLARE_KILL_SEED=$(SEED) $(GO) test ./e2e/procs -run 'TestKillRounds' -count=1 -v -timeout 0

test-simulation: deps ## SEEDS (5000) runs of the replication simulator; SEED=number repeats one with its events
	FLARE_SIM_SEEDS=$(or $(SEEDS),5000) FLARE_SIM_SEED=$(SEED) $(GO) test ./agent/replication -run TestSimulation -count=1 -v -timeout 0

walk: deps ## CHECKS (4000) random walks through the controller's core; SEED=number repeats them
	$(GO) test ./controller/core -run 'Walk$$' -count=1 -v -timeout 0 -rapid.checks=$(or $(CHECKS),4000) -rapid.seed=$(or $(SEED),$(shell date +%s))

check-model: ## Every world of e2e/model, up to its limit (WORLDS=a,b: those; MUTATIONS=1: break the core, see that it is seen)
	@mkdir -p $(BIN) && $(GO) build -o $(BIN)/ ./e2e/model/check && $(BIN)/check $(if $(MUTATIONS),-mutations,-worlds "$(WORLDS)" -trace $(BUILD)/counterexample.trace)

fuzz: deps ## Every fuzz target, FUZZTIME (30s) each
	@FUZZTIME=$(FUZZTIME) e2e/fuzz.sh

lint: ## gofmt, go vet, staticcheck, buf lint, generated files up to date
	@$(MAKE) -s tools
	@BIN=$(BIN) e2e/lint.sh

e2e: ## End-to-end suite on the local Kubernetes: SUITE=smoke, topology, breaker, bluegreen, leaderchange, import or failover (RUNS=20)
	@BUILD=$(BUILD) e2e/run.sh $(SUITE)

bench: build ## Ratios to memcached and db_bench on this machine (ONLY=text: lines with that in their name)
	@e2e/deps.sh memcached rocksdb-tools
	@$(GO) build -o $(BIN)/ ./e2e/bench && $(BIN)/bench -bin $(BIN) -only "$(ONLY)"

bench-replication: build ## What replication costs and how quick it is, beside one writer and cp (MB=400)
	@$(GO) build -o $(BIN)/ ./e2e/bench && $(BIN)/bench -bin $(BIN) -keys 20000 -replication $(or $(MB),400)

bench-failover: build ## From the loss of a master to the next write, RUNS (20) times in each of three ways
	@$(GO) build -o $(BIN)/ ./e2e/bench && $(BIN)/bench -bin $(BIN) -keys 1000 -failover $(or $(RUNS),20) -only "$(ONLY)"

bench-controller: build ## The controller with 1000 nodes: 100 die at once; time, memory, cost of a step (ARGS="-fail 200")
	@$(GO) run ./e2e/bench/controller -bin $(BIN) $(ARGS)

bench-packages: ## Go benchmarks of the packages that carry the load
	$(GO) test -run '^$$' -bench . -benchmem ./proto/text ./agent/storage ./agent/node
