# On a fresh Debian 12 with Go, git and make, as root: `make run`, `make test`.
# Everything that is built or downloaded is below bin/ and .cache/.

GO        ?= go
CACHE     := .cache
TOOLS     := $(CACHE)/bin
GUEST     := $(CACHE)/guest
AGENT     := bin/bhyve-agent
SHIM      := bin/containerd-shim-bhyve-v2
POOL      := bin/bhyve-pool

PACKAGES  := busybox-static ca-certificates gcc libc6-dev libprotobuf-dev \
             nftables protobuf-compiler qemu-system-x86 runc tini xz-utils
CONTAINERD := github.com/containerd/containerd/v2/cmd
CNI        := github.com/containernetworking/plugins/plugins

# A run of the integration tests that takes longer than this hangs.
INTEGRATION_TIMEOUT ?= 40m

comma := ,
say = @printf '\033[1m==> %s\033[0m\n' '$(1)'

# $(call build,OUTPUT,FLAGS PACKAGE): OUTPUT keeps its time stamp if nothing changed.
define build
	@mkdir -p $(dir $(1))
	@$(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $(1).new $(2)
	@if cmp -s $(1).new $(1); then rm $(1).new; else mv $(1).new $(1); fi
endef

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: guest lab ## run a container in a virtual machine of its own, through a real containerd
	@$(TOOLS)/lab

.PHONY: shell
shell: guest lab ## an interactive shell in such a container
	@$(TOOLS)/lab -shell

.PHONY: test
test: check-generate lint unit machines integration check-conformance ## everything that CI runs
	$(call say,all green)

.PHONY: bench
bench: guest lab runc-shim ## latency of every tier beside runc's; results in .cache/bench
	$(call say,benchmark)
	@# With the minimal kernel's tier if `make guest-minimal` has been run.
	@$(GO) run ./integration/cmd/bench -out $(CACHE)/bench $(if $(wildcard $(MINIMAL)/manifest.json),-minimal $(MINIMAL)) $(BENCHFLAGS)
	$(call say,benchmark of the network)
	@$(GO) run ./integration/cmd/netbench -out $(CACHE)/bench
	@BHYVE_FIGURES=1 $(GO) test -count=1 -v ./integration -run '^TestNetwork$$/^figures$$'

.PHONY: deps
deps: ## install the Debian packages that are missing
	@sh hack/deps.sh $(PACKAGES)

.PHONY: build
build: deps ## build shim, pool daemon and agent into bin/
	$(call say,shim$(comma) pool daemon and agent)
	$(call build,$(SHIM),./cmd/containerd-shim-bhyve-v2)
	$(call build,$(POOL),./cmd/bhyve-pool)
	$(call build,bin/bhyve-net,./cmd/bhyve-net)
	$(call build,bin/cni-bhyve,./cmd/cni-bhyve)
	@# Stripped: it is in the memory of every machine.
	$(call build,$(AGENT),-ldflags '-s -w' ./cmd/bhyve-agent)
build: export CGO_ENABLED = 0

.PHONY: guest
guest: build $(GUEST)/.stamp ## build the guest image into .cache/guest

$(GUEST)/.stamp: $(AGENT) $(shell find guest cmd/guest-image -type f)
	$(call say,guest image)
	@$(GO) run ./cmd/guest-image -agent $(AGENT) -lock guest/inputs.lock -cache $(CACHE)/debs -out $(GUEST)
	@touch $@

# The kernel as Debian has it, for the loader's tests: machines boot the vmlinux
# that is inside. Packages are kept under their names in the lock file.
BZIMAGE := $(CACHE)/vmlinuz
$(BZIMAGE): guest/inputs.lock | $(GUEST)/.stamp
	@dpkg-deb --fsys-tarfile $(CACHE)/debs/$$(awk '/^linux-image-/ { print $$1 "_" $$2 "_" $$3 ".deb" }' $<) | \
		tar -xO --wildcards './boot/vmlinuz-*' >$@.new
	@mv $@.new $@

MINIMAL := $(CACHE)/guest-minimal
KERNEL  := $(CACHE)/guest-kernel/vmlinux

.PHONY: guest-kernel
guest-kernel: deps ## build a kernel with only what a guest needs, from Debian's source
	$(call say,minimal guest kernel)
	@sh hack/deps.sh bc bison flex libelf-dev make
	@sh hack/guest-kernel.sh $(KERNEL)

.PHONY: guest-minimal
guest-minimal: build guest-kernel ## build the guest image with that kernel into .cache/guest-minimal
	$(call say,minimal guest image)
	@$(GO) run ./cmd/guest-image -agent $(AGENT) -lock guest/inputs.lock -kernel $(KERNEL) -cache $(CACHE)/debs -out $(MINIMAL)

# The agent's rule is `build`; its file changes only when its bytes do.
$(AGENT): build ;

# The lab: containerd and ctr, the probe program, and what starts them.
.PHONY: lab
lab: deps
	$(call say,containerd)
	@$(GO) build -C tools -o ../$(TOOLS)/ $(CONTAINERD)/containerd $(CONTAINERD)/ctr
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(TOOLS)/ ./integration/probe ./integration/cmd/lab

.PHONY: runc-shim
runc-shim:
	$(call say,the shim of runc to compare with)
	@$(GO) build -C tools -o ../$(TOOLS)/ $(CONTAINERD)/containerd-shim-runc-v2

# Suites that others wrote, each a module of its own, and what they need. Some
# entries of the checksum database cannot be had everywhere: go.sum has them.
.PHONY: suites
suites: lab runc-shim
	$(call say,conformance suites)
	@$(GO) build -C tools -o ../$(TOOLS)/cni/ $(addprefix $(CNI)/,ipam/host-local main/bridge main/loopback meta/firewall meta/portmap meta/tuning)
	@$(GO) build -C tools/nerdctl -o ../../$(TOOLS)/ github.com/containerd/nerdctl/v2/cmd/nerdctl
	@$(GO) build -C tools/cri -o ../../$(TOOLS)/ sigs.k8s.io/cri-tools/cmd/crictl github.com/onsi/ginkgo/v2/ginkgo
	@$(GO) test -C tools/cri -c -o ../../$(TOOLS)/critest sigs.k8s.io/cri-tools/cmd/critest
	@CGO_ENABLED=0 $(GO) test -C tools/shimtest -c -o ../../$(TOOLS)/shimtest github.com/containerd/shimtest
	@# The containers of shimtest end at any signal, and a Go program that runs
	@# slowly sends itself some: not with this setting.
	@CGO_ENABLED=0 $(GO) build -C tools/shimtest -trimpath -ldflags '-s -w -X runtime.godebugDefault=asyncpreemptoff=1' \
		-o ../../$(TOOLS)/ github.com/containerd/shimtest/cmd/testbin
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(TOOLS)/ ./integration/cmd/conformance
	@$(GO) test -c -o $(TOOLS)/integration.test ./integration
suites: export GONOSUMDB = sigs.k8s.io/cri-tools,k8s.io/cri-api,k8s.io/cri-client,github.com/containerd/nerdctl,github.com/containerd/shimtest

.PHONY: conformance
conformance: guest suites ## run the conformance suites and write docs/conformance.md
	$(call say,conformance)
	@$(TOOLS)/conformance $(CONFORMANCEFLAGS)

.PHONY: check-conformance
check-conformance: guest suites ## run the conformance suites and compare with docs/conformance.md
	$(call say,conformance)
	@$(TOOLS)/conformance -check $(CONFORMANCEFLAGS)

.PHONY: stress
stress: guest suites ## a hundred lifecycles and execs in a row, ten sandboxes at once, and what stays of them
	$(call say,stress)
	@BHYVE_STRESS=100 $(GO) test -count=1 -timeout=90m -v ./integration -run '^TestStress$$'

# $(call run-tests,FORMAT,PACKAGES) FLAG...: a test that fails gets one second try.
run-tests = sh hack/run-tests.sh $(TOOLS)/gotestsum $(1) '$(2)'

.PHONY: gotestsum
gotestsum:
	@$(GO) build -C tools -o ../$(TOOLS)/ gotest.tools/gotestsum

.PHONY: machines
machines: guest gotestsum $(BZIMAGE) ## tests of the parts that boot machines or build images, without containerd
	$(call say,tests with machines)
	@BHYVE_GUEST_DIR=$(CURDIR)/$(GUEST) BHYVE_BZIMAGE=$(CURDIR)/$(BZIMAGE) BHYVE_DEBS=$(CURDIR)/$(CACHE)/debs $(call run-tests,testname, \
		./hypervisor/qemu ./hypervisor/host ./vmmapi/linuxboot ./guest/...) -count=1 -timeout 10m
	@BHYVE_GUEST_DIR=$(CURDIR)/$(GUEST) $(call run-tests,testname,./pool) -count=1 -timeout 10m -run TestMachines

.PHONY: generate
generate: deps ## regenerate the code of agentproto/v1 and pool/api/v1
	$(call say,generate)
	@sh hack/generate.sh

.PHONY: check-generate
check-generate: deps ## fail if the generated code is not what would be generated
	$(call say,check generated code)
	@rm -rf $(CACHE)/generated && mkdir -p $(CACHE)/generated && cp -r --parents agentproto/v1 pool/api/v1 $(CACHE)/generated
	@sh hack/generate.sh
	@for dir in agentproto/v1 pool/api/v1; do diff -ru $(CACHE)/generated/$$dir $$dir || exit 1; done

.PHONY: lint
lint: deps ## gofmt, go vet for Linux and FreeBSD, staticcheck
	$(call say,gofmt)
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmted:" $$unformatted; exit 1; fi
	$(call say,go vet)
	@$(GO) mod tidy -diff
	@$(GO) vet ./...
	$(call say,go build and vet for FreeBSD)
	@GOOS=freebsd CGO_ENABLED=0 $(GO) build ./...
	@GOOS=freebsd CGO_ENABLED=0 $(GO) vet ./...
	$(call say,staticcheck)
	@$(GO) build -C tools -o ../$(TOOLS)/ honnef.co/go/tools/cmd/staticcheck
	@$(TOOLS)/staticcheck ./...

.PHONY: unit
unit: deps gotestsum ## tests without virtual machines, with the race detector
	$(call say,unit tests)
	@# Tests start this binary many times over; the detector would let each sleep
	@# for a second at its end.
	@GORACE=atexit_sleep_ms=0 $(call run-tests,pkgname,$(filter-out %/integration,$(shell $(GO) list ./...))) -race

.PHONY: integration
integration: guest suites gotestsum ## tests with a real containerd and real virtual machines
	$(call say,integration tests)
	@$(call run-tests,standard-verbose,./integration) \
		-count=1 -timeout=$(INTEGRATION_TIMEOUT) -skip '^TestNerdctl$$' $(TESTFLAGS)

.PHONY: test-freebsd
test-freebsd: guest $(BZIMAGE) ## unit and integration tests on a FreeBSD 15 host: HOST=[user@]host[:port]
	@HOST='$(HOST)' sh hack/test-freebsd.sh $(STEPS)

PREFIX ?= /usr/local

.PHONY: install
install: guest ## install programs, units and guest image below PREFIX, /usr/local
	install -D -m 755 $(SHIM) $(DESTDIR)$(PREFIX)/bin/$(notdir $(SHIM))
	install -D -m 755 $(POOL) $(DESTDIR)$(PREFIX)/bin/$(notdir $(POOL))
	install -m 755 bin/bhyve-net bin/cni-bhyve $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/share/containerd-shim-bhyve/guest
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system contrib/systemd/bhyve-pool.service contrib/systemd/bhyve-net.service
	install -m 644 $(GUEST)/* $(DESTDIR)$(PREFIX)/share/containerd-shim-bhyve/guest/

.PHONY: clean
clean: ## remove everything that was built or downloaded
	rm -rf bin $(CACHE)
