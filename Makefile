# Works with FreeBSD's make(1) and with GNU make: no conditionals, no pattern rules, no shell functions.
CARGO = cargo
PREFIX = /usr/local
DESTDIR =
MODEL = models/gamegen-x-mini
BENCH_DEVICE = auto
BENCH_FLAGS =

.PHONY: all build run test bench install uninstall clean

all: build

# Everything the two binaries need is in the crate; the kernels are assembled by build.rs.
build:
	$(CARGO) build --release --locked

# Installs what is missing, builds, starts gamegend in the foreground with embedded defaults and prints its address.
run:
	sh tools/setup run
	$(CARGO) build --release --locked
	exec target/release/gamegend -d

# Everything that must hold before a change lands. Prints what was skipped and why.
test:
	sh tools/setup test
	sh tools/test

# Frames a second and time by kernel: make bench BENCH_DEVICE=cpu
bench:
	sh tools/setup run
	$(CARGO) bench --locked --bench engine -- --model $(MODEL) --device $(BENCH_DEVICE) $(BENCH_FLAGS)

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/etc/gamegend $(DESTDIR)$(PREFIX)/etc/rc.d
	install -d $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man7 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 target/release/gamegend $(DESTDIR)$(PREFIX)/sbin/gamegend
	install -m 755 target/release/gamegendctl $(DESTDIR)$(PREFIX)/bin/gamegendctl
	install -m 755 rc.d/gamegend $(DESTDIR)$(PREFIX)/etc/rc.d/gamegend
	install -m 644 etc/gamegend.toml.sample $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml.sample
	install -m 644 man/gamegend.toml.5 $(DESTDIR)$(PREFIX)/share/man/man5/gamegend.toml.5
	install -m 644 man/gamegend-protocol.7 $(DESTDIR)$(PREFIX)/share/man/man7/gamegend-protocol.7
	install -m 644 man/gamegend.8 man/gamegendctl.8 $(DESTDIR)$(PREFIX)/share/man/man8
	(cd models && find gamegen-x-mini -type f) | while read -r f; do \
	    install -d "$(DESTDIR)$(PREFIX)/share/gamegend/models/$$(dirname "$$f")"; \
	    install -m 644 "models/$$f" "$(DESTDIR)$(PREFIX)/share/gamegend/models/$$f"; \
	done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/gamegend $(DESTDIR)$(PREFIX)/bin/gamegendctl $(DESTDIR)$(PREFIX)/etc/rc.d/gamegend
	rm -f $(DESTDIR)$(PREFIX)/etc/gamegend/gamegend.toml.sample $(DESTDIR)$(PREFIX)/share/man/man5/gamegend.toml.5
	rm -f $(DESTDIR)$(PREFIX)/share/man/man7/gamegend-protocol.7
	rm -f $(DESTDIR)$(PREFIX)/share/man/man8/gamegend.8 $(DESTDIR)$(PREFIX)/share/man/man8/gamegendctl.8
	rm -rf $(DESTDIR)$(PREFIX)/share/gamegend

clean:
	$(CARGO) clean
