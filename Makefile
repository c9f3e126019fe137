# `make demo` and `make test` are the two commands of the README; CONTRIBUTING.md explains the rest.
.PHONY: all build demo test bench fmt lint clean

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)
KILN = $(TARGET)/release/kiln
BASE = $(TARGET)/base/debian.tar

all: build

# A static binary: glibc is linked in (`cargo rustc` hands the flag to the program alone, because
# procedural macros cannot be made with it).
build:
	$(CARGO) rustc --release --locked -p kiln --bin kiln -- -C target-feature=+crt-static

$(BASE):
	scripts/base-image.sh $@

demo:
	scripts/setup.sh demo
	$(MAKE) build $(BASE)
	scripts/demo.sh $(KILN) $(BASE)

test:
	scripts/setup.sh test
	$(MAKE) build $(BASE)
	KILN_TEST_BASE=$(abspath $(BASE)) KILN_TEST_BINARY=$(abspath $(KILN)) scripts/test.sh

bench:
	scripts/setup.sh bench
	$(MAKE) build $(BASE)
	scripts/bench.sh $(KILN) $(BASE)

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

clean:
	$(CARGO) clean
