// Command flare-controller is the index server of a flare cluster: it keeps the
// node map, decides which node is master or replica of which partition, and tells
// the nodes.
//
//	flare-controller --cluster NAME              in Kubernetes, for one FlareCluster
//	flare-controller --standalone cluster.yaml   without, on files
//	flare-controller import flare.xml ...        takes over the node map of a C++ index server
//	flare-controller plan -f cluster.yaml        tells what a changed manifest would bring about
//	flare-controller replay FILE                 lets the core do again what --record wrote down
//	flare-controller crd apply|delete-unused     looks after the FlareCluster definition
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
	"golang.org/x/sync/errgroup"

	"github.com/flarekv/flare/controller/admin"
	"github.com/flarekv/flare/controller/recording"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/controller/standalone"
)

// version is set by the build.
var version = "2.0.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "flare-controller:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "flare-controller:", err)
		os.Exit(1)
	}
}

// errUsage is wrapped by errors about the command line.
var errUsage = errors.New("usage")

// options is the command line.
type options struct {
	standalone, stateDir       string
	nodes                      string
	index, grpc, http, metrics string
	logLevel, logFormat        string
	record                     string
	recordMB                   int64
	showVersion                bool
	kube                       kubeOptions
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("flare-controller", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.standalone, "standalone", "", "run without Kubernetes for the cluster described in this `file`, a FlareCluster manifest")
	fs.StringVar(&o.stateDir, "state-dir", "flare-state", "`directory` of the state (with --standalone)")
	fs.StringVar(&o.nodes, "nodes", "", "`file` that lists the nodes there are (with --standalone); without it their number alone counts")
	fs.StringVar(&o.index, "index", ":12120", "`address` of the index protocol")
	fs.StringVar(&o.grpc, "grpc", ":13120", "`address` of gRPC: agents' links and the admin API")
	fs.StringVar(&o.http, "http", ":8080", "`address` of /healthz and /readyz")
	fs.StringVar(&o.metrics, "metrics", ":9090", "`address` of /metrics")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.logFormat, "log-format", "json", "json or text")
	fs.StringVar(&o.record, "record", "", "append everything that is decided on, and what is decided, to this `file`, for flare-controller replay; - is the standard output")
	fs.Int64Var(&o.recordMB, "record-mb", 256, "`MiB` after which --record ends")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	o.kube.register(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%w: unexpected argument %q; flags come as --name=value", errUsage, fs.Arg(0))
	}
	if o.showVersion {
		return o, nil
	}
	if (o.standalone == "") == (o.kube.cluster == "") {
		return nil, fmt.Errorf("%w: give either --cluster=NAME (in Kubernetes) or --standalone=FILE", errUsage)
	}
	if o.recordMB < 1 {
		return nil, fmt.Errorf("%w: --record-mb %d: want at least 1", errUsage, o.recordMB)
	}
	return o, nil
}

func newLogger(o *options, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("%w: --log-level %q: want debug, info, warn or error", errUsage, o.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("%w: --log-format %q: want json or text", errUsage, o.logFormat)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "crd" {
		return runCRD(ctx, args[1:], stdout)
	}
	if len(args) > 0 && args[0] == "import" {
		return runImport(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "plan" {
		return runPlan(ctx, args[1:], os.Stdin, stdout, stderr)
	}
	if len(args) > 0 && args[0] == "replay" {
		return runReplay(args[1:], os.Stdin, stdout)
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if o.showVersion {
		_, err := fmt.Fprintln(stdout, "flare-controller", version)
		return err
	}
	log, err := newLogger(o, stderr)
	if err != nil {
		return err
	}
	log.Info("flare-controller starts", "version", version, "pid", os.Getpid())

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	name := o.kube.pod
	if name == "" {
		name = "standalone"
	}
	server, err := admin.New(admin.Config{Name: name, Registry: registry, Logger: log})
	if err != nil {
		return err
	}
	p := &program{options: o, log: log, admin: server}
	if o.standalone == "" {
		return p.serve(ctx, p.runKube)
	}
	// The state directory is taken before anything listens: a second controller
	// shall say that it is one, and not that a port is in use.
	backend, err := standalone.Open(standalone.Config{Manifest: o.standalone, Nodes: o.nodes, StateDir: o.stateDir, Logger: log})
	if err != nil {
		return err
	}
	defer backend.Close()
	return p.serve(ctx, func(ctx context.Context) error { return p.lead(ctx, backend, nil) })
}

// program is one running controller process.
type program struct {
	options  *options
	log      *slog.Logger
	admin    *admin.Server
	recorder runtime.Recorder // nil for none
}

// serve runs the admin servers beside work, until work or ctx ends. nil when it
// was ctx.
func (p *program) serve(ctx context.Context, work func(context.Context) error) error {
	if p.options.record != "" {
		r, err := recording.Open(recording.Config{File: p.options.record, Limit: p.options.recordMB << 20, Program: version, Logger: p.log})
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		defer r.Close()
		p.recorder = r
	}
	var l admin.Listeners
	for _, s := range []struct {
		flag, addr string
		ln         *net.Listener
	}{
		{"--grpc", p.options.grpc, &l.GRPC}, {"--http", p.options.http, &l.HTTP}, {"--metrics", p.options.metrics, &l.Metrics},
	} {
		if s.flag == "--metrics" && s.addr == p.options.http {
			l.Metrics = l.HTTP
			continue
		}
		ln, err := net.Listen("tcp", s.addr)
		if err != nil {
			return fmt.Errorf("%s: %w", s.flag, err)
		}
		defer ln.Close()
		*s.ln = ln
		p.log.Info("listening", "for", s.flag[2:], "address", ln.Addr().String())
	}
	g, running := errgroup.WithContext(ctx)
	running, end := context.WithCancel(running)
	g.Go(func() error { return p.admin.Serve(running, l) })
	g.Go(func() error {
		defer end()
		return work(running)
	})
	err := g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		p.log.Info("stopped")
		return nil
	}
	return err
}
