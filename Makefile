# Thin names for the brim commands; each prints the one that it runs. What a target needs is set up once, before it.
#
#   MODEL=resnet50 CONFIG=b4    which models and which serving configuration (default: all that the tables name)
#   URL=http://host:8000        load a Triton that runs elsewhere (MODEL is then its model)
#   SENDERS=2 CONCURRENCY=16    load points of `make loadtest`
#   SLO_MS=50                   its SLO at p99; by default 5 x the time of a full batch, none = only the peak
#   MODE=docker                 how `make serve` serves: embedded, docker or remote (then with URL=)
#   OUT=folder ARGS='...'       where results go; anything else that the command takes
#   PYTHON=python3.12           set up with this Python and no other

.PHONY: help setup demo export serve loadtest calibrate report status down doctor gpu-check bundle
.PHONY: test bench bench-search bench-truth bench-long check lock clean
.NOTPARALLEL:
.DEFAULT_GOAL := help
# Set-up compiles nothing, and many images forbid Python to keep bytecode: every sender would then compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

BRIM := .venv/bin/brim
RUNS = import sys; sys.exit(sys.version_info < (3, 8))

# Any Python that really runs is enough to start with; install/ then chooses the one to build on. Looked up only by
# the recipes that need it, and once.
find_boot = for p in "$(PYTHON)" python3.12 python3.11 python3 python3.13 /usr/bin/python3; do \
	"$$p" -c "$(RUNS)" 2>/dev/null && { echo "$$p"; break; }; done
BOOT = $(eval BOOT := $(shell $(find_boot)))$(BOOT)
INSTALL = $(or $(BOOT),$(error Brim needs Python 3.11, 3.12 or 3.13, and no Python answers here: install python3.12 \
	and python3.12-venv, or name one: make PYTHON=/path/to/python3.12)) -m install
ensure = @$(INSTALL) ensure --python "$(PYTHON)" --for
platform = @b="$(BOOT)"; test -z "$$b" || "$$b" -m install platform

out = $(if $(OUT),--out $(OUT))
# A variant is MODEL__CONFIG; a bare MODEL is the one with the default configuration of a CPU host.
variant = $(if $(MODEL),$(if $(findstring __,$(MODEL)),$(MODEL),$(MODEL)__$(or $(CONFIG),b4)))
# CONFIG alone says nothing of what is served, unless the same make serves it.
lone_config = $(if $(MODEL)$(URL)$(filter serve,$(MAKECMDGOALS)),,$(if $(CONFIG),$(error \
	CONFIG=$(CONFIG) is of a model: make loadtest MODEL=resnet50 CONFIG=$(CONFIG))))
# The peak and the rate at an SLO, unless one load point or another way to load is asked for.
slo = $(if $(CONCURRENCY)$(filter none,$(SLO_MS))$(filter --rate% --trace% --slo-ms% --master% --worker% --concurrency% --items-per-request%,$(ARGS)),,--slo-ms $(or $(SLO_MS),auto))
load = $(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(SENDERS),--senders $(SENDERS))

## help        this list
help:
	@awk '/^## /{sub(/^## /, "  make "); print}' Makefile
	@echo "  variables: MODEL CONFIG URL SENDERS CONCURRENCY SLO_MS MODE OUT ARGS PYTHON (the head of the Makefile says what each is)"
	$(platform)

## demo        a first believable number from a small network, without torch
demo:
	$(ensure) demo
	$(strip $(BRIM) demo $(out) $(ARGS))

## export      PyTorch models to ONNX, checked against torch
export:
	$(ensure) export
	$(strip $(BRIM) export $(MODEL) $(out) $(ARGS))

## serve       start Triton on the exported models; it stays up until `make down`
serve:
	$(ensure) $(if $(URL)$(filter-out embedded,$(MODE)),serve-elsewhere,serve)
	$(strip $(BRIM) serve $(MODEL) $(if $(CONFIG),--config $(CONFIG)) $(if $(MODE),--mode $(MODE)) \
		$(if $(URL),--url $(URL)) --run $(out) $(ARGS))

## loadtest    measure what is served, or with URL= a Triton elsewhere
loadtest:
	$(lone_config)
	$(ensure) $(if $(URL),loadtest-url,loadtest)
	$(strip $(BRIM) loadtest $(if $(URL),$(URL) $(MODEL),$(variant)) $(load) $(slo) $(out) $(ARGS))

## report      the newest report again, from files
report:
	$(ensure) report
	$(strip $(BRIM) report $(out) $(ARGS))

## status      what is served, what is not ready and why
status:
	$(ensure) status
	$(strip $(BRIM) status $(out) $(ARGS))

## down        stop the server that Brim started
down:
	$(ensure) down
	$(strip $(BRIM) down $(out) $(ARGS))

## calibrate   servers of known capacity, measured by each generator and held against their own logs
calibrate:
	$(ensure) $(if $(filter --loadgen,$(ARGS)),calibrate-loadgen,loadtest)
	$(strip $(BRIM) calibrate $(out) $(ARGS))

## doctor      look at this machine, one line a part, with its fix
doctor:
	$(ensure) doctor
	$(strip $(BRIM) doctor $(out) $(ARGS))

## gpu-check   figures of a GPU host; with PYTHON=python3 (that has torch) nothing is set up
gpu-check:
	$(if $(PYTHON),$(platform),$(ensure) gpu-check)
	$(strip $(if $(PYTHON),$(PYTHON) -m brim,$(BRIM)) gpu-check $(out) $(ARGS))

## bundle      one archive for a host without internet (HAVE=its pip freeze)
bundle:
	$(ensure) bundle
	$(strip $(BRIM) bundle $(if $(HAVE),--have $(HAVE)) $(out) $(ARGS))

# Two at a time, as tests wait most of theirs: what waits for pip, torch and servers beside units, bookkeeping and
# endings; what measures a known server beside what drives loads. Then, alone on the machine, the rest: what fills it.
PYTEST = .venv/bin/python -m pytest
contract = $(addprefix tests/contract/test_,$(addsuffix .py,$(1)))
waiting = $(call contract,install_setup export serve_server_live serve_models serve_known benchmark_runs measure_endings sender_bugs bad_servers)
beside = tests/unit tests/studies $(call contract,gpu_check tls grpc shared_memory cluster cluster_namespaces report_browser)
measuring = $(call contract,calibrate_live measure)
driving = $(call contract,locust locust_triton open_loop overload perf_analyzer rates)
paired = $(filter tests/contract/%,$(waiting) $(beside) $(measuring) $(driving))
at_once = $(PYTEST) $(2) >"$$said" 2>&1 & pid=$$!; \
$(PYTEST) --durations=8 $(1) || failed=1; wait $$pid || failed=1; cat "$$said"
define all_tests
@said=$$(mktemp); failed=0; \
$(call at_once,$(waiting),$(beside)); \
$(call at_once,$(measuring),$(driving)); \
rm -f "$$said"; $(PYTEST) --durations=8 tests/contract $(addprefix --ignore=,$(paired)) || failed=1; exit $$failed
endef

## test        all tests; with ARGS= only what pytest is told
test:
	$(ensure) test
	$(if $(ARGS),$(PYTEST) $(ARGS),$(all_tests))

# What is measured side by side must have the machine for itself: one after the other, and a miss does not end the rest.
BENCH = .venv/bin/python -m benchmarks

## bench       rates, processor time and serving cost beside perf_analyzer (20 minutes)
bench:
	$(ensure) test
	$(strip $(BRIM) export resnet50 $(out))
	$(strip $(BENCH).rates $(out) $(ARGS)); rates=$$?; $(strip $(BENCH).serving_cost $(out)) && exit $$rates

## bench-search five servers of known capacity: is the search right, and how long does it take (30 minutes)
bench-search:
	$(ensure) test
	$(strip $(BENCH).search $(out) $(ARGS))

## bench-truth  servers of known capacity, open loop, the rate at an SLO: is it true (100 minutes; ARGS='--part open')
bench-truth:
	$(ensure) test
	$(strip $(BENCH).truth $(out) $(ARGS))

## bench-long   ten minutes of load: does memory grow
bench-long:
	$(ensure) test
	$(strip $(BENCH).long $(out) $(ARGS))

# The units in two halves by name, and the types beside them: two cores are done in little more than half the time.
define units_and_types
@types=$$(mktemp); half=$$(mktemp); .venv/bin/mypy >"$$types" 2>&1 & mypy=$$!; \
$(PYTEST) -q -p no:cacheprovider tests/unit/test_[a-oq]*.py >"$$half" 2>&1 & first=$$!; \
$(PYTEST) -q tests/unit/test_[pr-z]*.py; second=$$?; \
wait $$first; first=$$?; wait $$mypy; mypy=$$?; cat "$$half" "$$types"; rm -f "$$half" "$$types"; \
[ $$first = 0 ] && [ $$second = 0 ] && [ $$mypy = 0 ]
endef

## check       format, lint, types, import rules, unit tests: what a commit must pass
check:
	$(ensure) check
	.venv/bin/ruff format --check --quiet .
	.venv/bin/ruff check --quiet .
	$(units_and_types)

## setup       everything that any target needs
setup:
	$(ensure) setup

## lock        resolve the dependencies anew and write install/locks/
lock:
	@$(INSTALL) lock --python "$(PYTHON)"

## clean       remove .venv, .tools and caches; results in out/ stay
clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis
