# make        set up a virtual environment in .venv and run the demo (minutes on two CPU cores)
# make test   set up and run the tests
# make viewer-test   the page's tests, in a browser that it installs (Debian, Ubuntu; as root)
# Both are safe to repeat: what is there already is not done again. make clean removes what they made.

PYTHON ?= python3

demo: .venv/ready
	.venv/bin/python reproduce.py --preset demo --results out/results

# Two halves side by side, about equally long. The second is shown when both are done, also after
# Ctrl-C. A starter of the course has only the first.
FIRST = $(filter-out tests/plumbing/ tests/__pycache__/,$(wildcard tests/*/)) \
    $(wildcard course/tests tests/plumbing/test_course.py)
SECOND = $(wildcard tests/plumbing)

test:
	@rm -f .venv/second.txt; trap : INT; \
	    $(MAKE) --no-print-directory -j2 test-first $(if $(SECOND),test-second); \
	    code=$$?; cat .venv/second.txt 2> /dev/null; exit $$code

test-first: .venv/ready
	.venv/bin/python -m pytest $(FIRST)

test-second: .venv/ready
	@exec .venv/bin/python -m pytest $(SECOND) --ignore=tests/plumbing/test_course.py \
	    > .venv/second.txt 2>&1

viewer-test: .venv/ready
	command -v chromedriver || (apt-get update && apt-get install -y chromium chromium-driver)
	.venv/bin/python -m pytest tests/viewer

# The stamp is written last, so an installation that was interrupted is done again.
.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/ready

clean:
	rm -rf .venv out data/cache

.PHONY: demo test test-first test-second viewer-test clean
