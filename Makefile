# Works with FreeBSD's make(1) and with GNU make: no conditionals, no pattern rules, no shell functions.
CARGO = cargo
PREFIX = /usr/local
MANPREFIX = $(PREFIX)/share
DESTDIR =
MODEL = models/gamegen-x-mini
BENCH_DEVICE = auto
BENCH_FLAGS =
# The make that reads this; under another name, since a recipe with that variable itself would run even with -n.
THIS_MAKE = $(MAKE)

.PHONY: all build run test test-jail bench bench-engine install uninstall package clean

all: build

# Everything the two binaries need is in the crate; the kernels are assembled by build.rs.
build:
	$(CARGO) build --release --locked

# Installs what is missing, builds, starts gamegend in the foreground with embedded defaults and prints its address.
run:
	sh tools/setup run
	$(CARGO) build --release --locked
	target/release/gamegend -d

# Everything that must hold before a change lands. Prints what was skipped and why.
test:
	sh tools/setup test
	sh tools/test

# Everything that is measured, beside PyTorch where it is installed, into benches/results: make bench BENCH_DEVICE=cpu
bench:
	sh tools/setup run
	sh tools/bench --model $(MODEL) --device $(BENCH_DEVICE) $(BENCH_FLAGS)

# Frames a second and time by kernel of one session: make bench-engine BENCH_FLAGS="--size 320x192 --steps 2"
bench-engine:
	sh tools/setup run
	$(CARGO) bench --locked --bench engine -- --model $(MODEL) --device $(BENCH_DEVICE) $(BENCH_FLAGS)

# What was built, below DESTDIR: `make build` first as yourself, then `make install` as root.
install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/etc/gamegend $(DESTDIR)$(PREFIX)/etc/rc.d
	install -d $(DESTDIR)$(PREFIX)/etc/newsyslog.conf.d $(DESTDIR)$(PREFIX)/share/examples/gamegend
	install -d $(DESTDIR)$(MANPREFIX)/man/man5 $(DESTDIR)$(MANPREFIX)/man/man7 $(DESTDIR)$(MANPREFIX)/man/man8
	install -d $(DESTDIR)$(PREFIX)/share/gamegend/jails $(DESTDIR)$(PREFIX)/share/gamegend/models
	install -m 755 target/release/gamegend $(DESTDIR)$(PREFIX)/sbin/gamegend
	install -m 755 target/release/gamegendctl $(DESTDIR)$(PREFIX)/bin/gamegendctl
	sed 's|/usr/local|$(PREFIX)|g' rc.d/gamegend >$(DESTDIR)$(PREFIX)/etc/rc.d/gamegend
	chmod 755 $(DESTDIR)$(PREFIX)/etc/rc.d/gamegend
	install -m 644 etc/gamegend.toml.sample $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml.sample
	[ -e $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml ] || \
	    install -m 644 etc/gamegend.toml.sample $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml
	install -m 644 etc/newsyslog.conf.d/gamegend.conf $(DESTDIR)$(PREFIX)/etc/newsyslog.conf.d/gamegend.conf.sample
	install -m 644 etc/devfs.rules.sample $(DESTDIR)$(PREFIX)/share/examples/gamegend/devfs.rules.sample
	sed 's|/usr/local|$(PREFIX)|g' etc/systemd/gamegend.service >$(DESTDIR)$(PREFIX)/share/examples/gamegend/gamegend.service
	install -m 644 etc/systemd/gamegend.sysusers $(DESTDIR)$(PREFIX)/share/examples/gamegend
	install -m 644 jails/worker.toml jails/README.md $(DESTDIR)$(PREFIX)/share/gamegend/jails
	install -m 644 man/gamegend.toml.5 $(DESTDIR)$(MANPREFIX)/man/man5/gamegend.toml.5
	install -m 644 man/gamegend-protocol.7 $(DESTDIR)$(MANPREFIX)/man/man7/gamegend-protocol.7
	install -m 644 man/gamegend.8 man/gamegendctl.8 $(DESTDIR)$(MANPREFIX)/man/man8
	(cd models && find gamegen-x-mini -type f) | while read -r f; do \
	    install -d "$(DESTDIR)$(PREFIX)/share/gamegend/models/$$(dirname "$$f")" || exit 1; \
	    install -m 644 "models/$$f" "$(DESTDIR)$(PREFIX)/share/gamegend/models/$$f" || exit 1; \
	done

# Takes away what install put there. A configuration that was changed stays, and so do other models.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/gamegend $(DESTDIR)$(PREFIX)/bin/gamegendctl $(DESTDIR)$(PREFIX)/etc/rc.d/gamegend
	if cmp -s $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml.sample; then \
	    rm -f $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml; fi
	rm -f $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml.sample
	rm -f $(DESTDIR)$(PREFIX)/etc/newsyslog.conf.d/gamegend.conf.sample
	rm -f $(DESTDIR)$(MANPREFIX)/man/man5/gamegend.toml.5 $(DESTDIR)$(MANPREFIX)/man/man7/gamegend-protocol.7
	rm -f $(DESTDIR)$(MANPREFIX)/man/man8/gamegend.8 $(DESTDIR)$(MANPREFIX)/man/man8/gamegendctl.8
	rm -rf $(DESTDIR)$(PREFIX)/share/gamegend/models/gamegen-x-mini $(DESTDIR)$(PREFIX)/share/gamegend/jails
	rm -rf $(DESTDIR)$(PREFIX)/share/examples/gamegend
	rmdir $(DESTDIR)$(PREFIX)/share/gamegend/models $(DESTDIR)$(PREFIX)/share/gamegend 2>/dev/null || true
	rmdir $(DESTDIR)$(PREFIX)/etc/gamegend 2>/dev/null || true

# A package of pkg(8) in target/package; without pkg, its manifest, list and files.
package: build
	MAKE="$(THIS_MAKE)" sh tools/package

# The jail and capability mode, as root on FreeBSD; the fences, as root on Linux.
test-jail:
	$(CARGO) test --locked --test jail --test fences -- --nocapture

clean:
	$(CARGO) clean
