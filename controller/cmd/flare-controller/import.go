package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/flarexml"
	"github.com/flarekv/flare/controller/kube"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/controller/standalone"
)

// importTimeout bounds the import.
const importTimeout = time.Minute

const importUsage = "flare-controller import FLARE.XML (--standalone=cluster.yaml [--state-dir=DIR] | --cluster=NAME) [--dry-run]"

// runImport makes the node map of a C++ index server the first state of a cluster.
// It needs a state that knows no nodes yet: what a controller has decided is never
// overwritten.
func runImport(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("flare-controller import", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.standalone, "standalone", "", "the cluster described in this `file`, a FlareCluster manifest")
	fs.StringVar(&o.stateDir, "state-dir", "flare-state", "`directory` of the state (with --standalone)")
	dryRun := fs.Bool("dry-run", false, "say what would be taken over, and change nothing")
	o.kube.register(fs)
	if len(args) == 0 {
		return fmt.Errorf("%w: %s", errUsage, importUsage)
	}
	file := args[0]
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if fs.NArg() > 0 || (o.standalone == "") == (o.kube.cluster == "") {
		return fmt.Errorf("%w: %s", errUsage, importUsage)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	flarei, err := flarexml.Parse(content)
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

	if o.standalone != "" {
		manifest, err := standalone.ReadManifest(o.standalone)
		if err != nil {
			return err
		}
		backend, err := standalone.Open(standalone.Config{Manifest: o.standalone, StateDir: o.stateDir, Logger: log})
		if err != nil {
			return err
		}
		defer backend.Close()
		return importInto(ctx, backend, runtime.SpecOf(manifest.Spec, 1), flarei, *dryRun, stdout)
	}
	cfg, _, err := o.kube.config(log)
	if err != nil {
		return err
	}
	owner, err := kube.GetCluster(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read FlareCluster %s: %w", cfg.Cluster, err)
	}
	backend, err := kube.NewBackend(cfg, owner)
	if err != nil {
		return err
	}
	defer backend.Close()
	return importInto(ctx, backend, runtime.SpecOf(owner.Spec, owner.Generation), flarei, *dryRun, stdout)
}

// importInto makes the state of a cluster out of another index server's map.
func importInto(ctx context.Context, backend runtime.Backend, spec core.Spec, f flarexml.File, dryRun bool, stdout io.Writer) error {
	d, err := core.Import(f.Map, f.NextThread, spec.Meta)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if len(d.Partitions) != spec.Partitions {
		return fmt.Errorf("import: the file has %d partitions, the FlareCluster asks for %d; they must agree before the index server changes",
			len(d.Partitions), spec.Partitions)
	}
	was, found, err := backend.Load(ctx)
	if err != nil {
		return fmt.Errorf("import: read the present state: %w", err)
	}
	if found && (len(was.Nodes) > 0 || len(was.Partitions) > 0) {
		return fmt.Errorf("import: state_exists: the cluster has %d nodes and %d partitions already; an import must be its beginning",
			len(was.Nodes), len(was.Partitions))
	}
	d.Seq = was.Seq + 1
	d.Version = max(d.Version, was.Version)
	verb := "would take over"
	if !dryRun {
		if err := backend.Persist(ctx, d); err != nil {
			return fmt.Errorf("import: write the state: %w", err)
		}
		verb = "took over"
	}
	fmt.Fprintf(stdout, "%s %d nodes in %d partitions at map version %d\n", verb, len(d.Nodes), len(d.Partitions), d.Version)
	for _, n := range d.Nodes {
		fmt.Fprintf(stdout, "  %-32s %-7v %-8v partition %2d  balance %d\n", n.Key(), n.Role, n.State, n.Partition, n.Balance)
	}
	return nil
}
