// Command flare-agent stands beside one flared: it applies the mounted
// configuration to the running process and reports on it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/flarekv/flare/agent/sidecar"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// After the first signal the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// exit codes
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// flags are the command line.
type flags struct {
	settings              sidecar.Settings
	listen, http, metrics string
	logLevel              slog.Level
	logFormat             string
	version               bool
}

func parse(args []string, out io.Writer) (flags, error) {
	var f flags
	fs := flag.NewFlagSet("flare-agent", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&f.settings.Socket, "socket", "/run/flare/flared.sock", "Unix `path` on which flared listens for its agent")
	fs.StringVar(&f.settings.ConfigDir, "config-dir", "/etc/flared", "`directory` with extra.conf, flared's options, and generation, a number that is reported with them")
	fs.StringVar(&f.settings.Node, "node", "", "`host:port` under which flared registers at the index (required)")
	fs.StringVar(&f.settings.Controller, "controller", "", "`host:port` of the leading controller's gRPC; empty: report to nobody")
	fs.StringVar(&f.settings.Zone, "zone", "", "zone of this machine, if known")
	fs.DurationVar(&f.settings.PollInterval, "poll-interval", 0, "time between two looks at the configuration directory when nothing says that it changed (default 10s)")
	fs.StringVar(&f.listen, "listen", ":13121", "`address` of the gRPC admin API")
	fs.StringVar(&f.http, "http", ":8080", "`address` of /healthz and /readyz")
	fs.StringVar(&f.metrics, "metrics", ":9090", "`address` of /metrics")
	fs.TextVar(&f.logLevel, "log-level", slog.LevelInfo, "least severe messages that are logged: debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "json", "`form` of log lines: json or text")
	fs.BoolVar(&f.version, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return f, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q; every setting is a flag, see --help", fs.Arg(0))
		fmt.Fprintln(out, err)
		return f, err
	}
	if f.logFormat != "text" && f.logFormat != "json" {
		err := fmt.Errorf("--log-format is %q; it must be json or text", f.logFormat)
		fmt.Fprintln(out, err)
		return f, err
	}
	if f.settings.Node == "" && !f.version {
		err := errors.New("--node is required: the host:port under which flared registers, such as flare-0.flare-nodes:12121")
		fmt.Fprintln(out, err)
		return f, err
	}
	return f, nil
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	f, err := parse(args, errOut)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case f.version:
		fmt.Fprintln(out, "flare-agent", version)
		return exitOK
	}
	opts := &slog.HandlerOptions{Level: f.logLevel}
	log := slog.New(slog.NewTextHandler(errOut, opts))
	if f.logFormat == "json" {
		log = slog.New(slog.NewJSONHandler(errOut, opts))
	}
	if err := serve(ctx, f, log); err != nil {
		log.Error("flare-agent ends", "error", err)
		return exitError
	}
	return exitOK
}

func serve(ctx context.Context, f flags, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	f.settings.Version, f.settings.Registry, f.settings.Logger = version, reg, log
	agent, err := sidecar.New(f.settings)
	if err != nil {
		return err
	}
	var l sidecar.Listeners
	for _, s := range []struct {
		to         *net.Listener
		name, addr string
	}{{&l.GRPC, "listen", f.listen}, {&l.HTTP, "http", f.http}, {&l.Metrics, "metrics", f.metrics}} {
		if *s.to, err = net.Listen("tcp", s.addr); err != nil {
			return fmt.Errorf("--%s: %w", s.name, err)
		}
		defer (*s.to).Close()
	}
	log.Info("flare-agent starts", "version", version, "node", f.settings.Node, "socket", f.settings.Socket, "config_dir", f.settings.ConfigDir,
		"controller", f.settings.Controller, "zone", f.settings.Zone,
		"grpc", l.GRPC.Addr().String(), "http", l.HTTP.Addr().String(), "metrics", l.Metrics.Addr().String())
	if err := agent.Serve(ctx, l); err != nil {
		return err
	}
	log.Info("flare-agent ends", "reason", "signal")
	return nil
}
