# `make install` and `make uninstall`. The virtual environment is built beside its place and moved there whole, so a
# failed installation leaves the running one as it was. Nothing in it knows where it was built (DESTDIR).

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
PYTHON ?= python3
# optional libraries, such as redis,otel; those of the installation that is replaced stay
EXTRAS ?= $(shell cat '$(DESTDIR)$(APP)/extras' 2>/dev/null)

APP := $(PREFIX)/lib/manallm-proxy
LAUNCHER := $(PREFIX)/bin/manallm-proxy
UNIT := $(PREFIX)/lib/systemd/system/manallm-proxy.service
SOCKET := $(PREFIX)/lib/systemd/system/manallm-proxy.socket
SYSUSERS := $(PREFIX)/lib/sysusers.d/manallm-proxy.conf
MAN := $(PREFIX)/share/man
ETC := $(SYSCONFDIR)/manallm
SOURCES := pyproject.toml setup.cfg constraints.txt README.md LICENSE manallm_proxy config systemd

.PHONY: install
install:  ## install under PREFIX, with the systemd unit and /etc/manallm (DESTDIR, SYSCONFDIR, PYTHON, EXTRAS=redis,otel)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "manallm-proxy needs Python 3.11 or newer; name one: make PYTHON=python3.12 install"; exit 1; }
	@case '$(PREFIX)$(SYSCONFDIR)' in *[!A-Za-z0-9._/+-]*|[!/]*) \
		echo "PREFIX and SYSCONFDIR begin with / and have letters, digits and . _ + - (systemd reads them too)"; exit 1;; esac
	@case '$(EXTRAS)' in *[!a-z,]*) echo "EXTRAS are redis, otel, or both: EXTRAS=redis,otel"; exit 1;; esac
	@umask 022; mkdir -p '$(DESTDIR)$(PREFIX)/lib' '$(DESTDIR)$(SYSCONFDIR)' && \
		[ -w '$(DESTDIR)$(PREFIX)/lib' ] && [ -w '$(DESTDIR)$(SYSCONFDIR)' ] || \
		{ echo "This writes to $(DESTDIR)$(PREFIX) and $(DESTDIR)$(SYSCONFDIR): sudo make install, or set DESTDIR"; exit 1; }
	@echo "Installing into $(DESTDIR)$(APP) ..."
	@set -eu; umask 022; \
	new='$(DESTDIR)$(APP).new'; old='$(DESTDIR)$(APP).old'; source=$$(mktemp -d); \
	trap 'rm -rf "$$source" "$$new"' EXIT; trap 'exit 1' HUP INT TERM; \
	rm -rf "$$new" "$$old"; \
	cp -R $(SOURCES) "$$source"; \
	$(PYTHON) -m venv "$$new"; \
	"$$new/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --no-compile \
		--constraint "$$source/constraints.txt" "$$source$(if $(EXTRAS),[$(EXTRAS)])"; \
	echo '$(EXTRAS)' >"$$new/extras"; \
	"$$new/bin/python" -m pip uninstall -qq --disable-pip-version-check --yes setuptools pip; \
	find "$$new/bin" ! -name 'python*' ! -type d -exec rm -f {} +; \
	find "$$new" -name direct_url.json -exec rm -f {} +; \
	find "$$new" -name __pycache__ -prune -exec rm -rf {} +; \
	sed '/^command = /d' "$$new/pyvenv.cfg" >"$$source/pyvenv.cfg"; \
	cat "$$source/pyvenv.cfg" >"$$new/pyvenv.cfg"; \
	"$$new/bin/python" -m compileall -qq -j 0 -s "$$new" -p '$(APP)' "$$new/lib" || \
		echo "some of the bytecode could not be compiled; that costs time at the start, no more" >&2; \
	if [ -e '$(DESTDIR)$(APP)' ]; then mv '$(DESTDIR)$(APP)' "$$old"; fi; \
	mv "$$new" '$(DESTDIR)$(APP)'; rm -rf "$$old"; \
	base=$$('$(DESTDIR)$(APP)/bin/python' -c 'import os, sys; print(os.path.realpath(sys.executable))'); \
	for path in "$$base" '$(APP)'; do \
		case $${path#/} in root/*|home/*|run/user/*) \
			echo "Warning: the unit's ProtectHome=yes hides $$path from the service; name another PYTHON or PREFIX" >&2;; \
		esac; \
	done
	@umask 022; install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(dir $(UNIT))' '$(DESTDIR)$(dir $(SYSUSERS))'
	@install -m 0755 systemd/launcher.sh '$(DESTDIR)$(LAUNCHER)'
	@sed -e 's|/usr/local/bin/manallm-proxy|$(LAUNCHER)|g' -e 's|/etc/manallm|$(ETC)|g' \
		systemd/manallm-proxy.service >'$(DESTDIR)$(UNIT)'
	@chmod 0644 '$(DESTDIR)$(UNIT)'
	@umask 022; install -d '$(DESTDIR)$(MAN)/man1' '$(DESTDIR)$(MAN)/man5'
	@install -m 0644 systemd/manallm-proxy.1 '$(DESTDIR)$(MAN)/man1'
	@sed 's|/etc/manallm|$(ETC)|g' systemd/manallm-proxy.yaml.5 >'$(DESTDIR)$(MAN)/man5/manallm-proxy.yaml.5'
	@chmod 0644 '$(DESTDIR)$(MAN)/man5/manallm-proxy.yaml.5'
	@install -m 0644 systemd/manallm-proxy.socket '$(DESTDIR)$(SOCKET)'
	@install -m 0644 systemd/manallm-proxy.sysusers '$(DESTDIR)$(SYSUSERS)'
	@set -eu; root=; if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ]; then root=yes; fi; \
	if [ "$$root" ] && command -v systemd-sysusers >/dev/null; then systemd-sysusers '$(SYSUSERS)'; fi; \
	group=; if [ "$$root" ] && getent group manallm >/dev/null; then group='-g manallm'; fi; \
	for folder in '$(DESTDIR)$(ETC)' '$(DESTDIR)$(ETC)/keys'; do \
		if [ ! -e "$$folder" ]; then install -d -m 0750 $$group "$$folder"; fi; \
	done; \
	for file in proxy.yaml aliases.yaml; do \
		if [ ! -e '$(DESTDIR)$(ETC)'/$$file ]; then install -m 0640 $$group config/$$file '$(DESTDIR)$(ETC)'/$$file; \
			else echo "kept: $(DESTDIR)$(ETC)/$$file"; fi; \
	done; \
	if [ "$$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "1. Whom to call: $(ETC)/proxy.yaml, aliases.yaml; keys: a file each, such as $(ETC)/keys/GROQ_API_KEY"
	@echo "2. Is it right:  $(LAUNCHER) check --live --config $(ETC)/proxy.yaml --credentials $(ETC)/keys"
	@echo "3. Start:        systemctl enable --now manallm-proxy"

.PHONY: uninstall
uninstall:  ## remove what install brought, except /etc/manallm
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ] && [ -d /run/systemd/system ] && [ -e '$(UNIT)' ]; then \
		systemctl disable --now manallm-proxy.socket manallm-proxy || exit 1; fi
	@rm -rf '$(DESTDIR)$(APP)' '$(DESTDIR)$(APP).new' '$(DESTDIR)$(APP).old'
	@rm -f '$(DESTDIR)$(LAUNCHER)' '$(DESTDIR)$(UNIT)' '$(DESTDIR)$(SOCKET)' '$(DESTDIR)$(SYSUSERS)'
	@rm -f '$(DESTDIR)$(MAN)/man1/manallm-proxy.1' '$(DESTDIR)$(MAN)/man5/manallm-proxy.yaml.5'
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "Removed. Kept: $(DESTDIR)$(ETC) with configuration and keys, and the user manallm."
