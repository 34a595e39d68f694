package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/flarekv/flare/controller/admin"
	"github.com/flarekv/flare/controller/core"
	"github.com/flarekv/flare/controller/runtime"
	"github.com/flarekv/flare/controller/standalone"
	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

const planUsage = "flare-controller plan -f cluster.yaml [--controller=HOST:13120 | --state=FILE|DIR] [-o text|json]"

// errRefused tells that a part of what was asked for would not be done.
var errRefused = errors.New("refused")

// runPlan tells what a manifest would bring about: it asks the leading controller, or
// looks at a state that was saved.
func runPlan(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("flare-controller plan", flag.ContinueOnError)
	fs.SetOutput(stderr)
	file := fs.String("f", "", "the FlareCluster manifest `file`; - for the standard input")
	address := fs.String("controller", "localhost:13120", "`address` of the leading controller's gRPC")
	state := fs.String("state", "", "instead of asking a controller: a state `file` (state.json, or the key state of the ConfigMap NAME-node-map), or the state directory of a standalone controller")
	output := fs.String("o", "text", "text or json")
	timeout := fs.Duration("timeout", time.Minute, "how long a controller may take to answer")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if *file == "" || fs.NArg() > 0 || *output != "text" && *output != "json" {
		return fmt.Errorf("%w: %s", errUsage, planUsage)
	}
	manifest, err := readManifest(*file, stdin)
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	var plan *controllerv1.Plan
	if *state != "" {
		plan, err = planOffline(manifest, *state)
	} else {
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		plan, err = askPlan(ctx, *address, manifest)
	}
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if *output == "json" {
		err = printPlanJSON(stdout, plan)
	} else {
		err = printPlan(stdout, plan)
	}
	if err == nil && len(plan.Refusals) > 0 {
		return fmt.Errorf("plan: %w: %s", errRefused, plan.Refusals[0].GetReason())
	}
	return err
}

func readManifest(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

func askPlan(ctx context.Context, address string, manifest []byte) (*controllerv1.Plan, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := controllerv1.NewControllerServiceClient(conn).Plan(ctx, &controllerv1.PlanRequest{Manifest: string(manifest)})
	if err != nil {
		return nil, fmt.Errorf("ask the controller at %s: %s", address, status.Convert(err).Message())
	}
	return r.GetPlan(), nil
}

// planOffline makes the plan here. The former options are known only to a state
// directory; of a file alone all options count as new.
func planOffline(manifest []byte, path string) (*controllerv1.Plan, error) {
	cluster, err := standalone.ParseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var options []byte
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if options, err = os.ReadFile(filepath.Join(path, "config", "extra.conf")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		path = filepath.Join(path, "state.json")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var d core.Durable
	if err := json.Unmarshal(content, &d); err != nil {
		return nil, fmt.Errorf("%s is no state of a controller: %w", path, err)
	}
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%s cannot be used: %w", path, err)
	}
	s := core.New(d)
	s.ConfigWritten.Text = string(options)
	return admin.PlanProto(s, core.MakePlan(s, runtime.SpecOf(cluster.Spec, 0))), nil
}

// printPlanJSON prints the message as gRPC's JSON, the same bytes for the same plan.
func printPlanJSON(w io.Writer, p *controllerv1.Plan) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(p)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}

// printPlan prints the plan for people.
func printPlan(w io.Writer, p *controllerv1.Plan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "from map version %d:\n", p.MapVersion)
	if len(p.Changes) == 0 {
		b.WriteString("  nothing changes\n")
	}
	for i, c := range p.Changes {
		fmt.Fprintf(&b, "%4d  %-9s  %s  (%s)\n", i+1, kindName(c.Kind), changeText(c), c.Reason)
	}
	for _, r := range p.Refusals {
		fmt.Fprintf(&b, "refused: %s: %s\n", r.Reason, r.Message)
	}
	if !p.Settled {
		b.WriteString("the end was not reached: there is more to do than a plan looks at\n")
	}
	fmt.Fprintf(&b, "then: %s, %d of %d nodes in service, %d partitions with a master\n", p.Phase, p.NodesReady, p.NodesWanted, p.MastersUp)
	for _, c := range p.Conditions {
		fmt.Fprintf(&b, "      %s=%t %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func kindName(k controllerv1.PlannedChangeKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "PLANNED_CHANGE_KIND_"))
}

func changeText(c *controllerv1.PlannedChange) string {
	old, next := cmp.Or(c.OldValue, "none"), cmp.Or(c.NewValue, "none")
	switch c.Kind {
	case controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_JOIN:
		return c.Node + " as " + next
	case controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_LEAVE:
		return c.Node + ", which was " + old
	case controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_DUTY:
		return fmt.Sprintf("%s: %s -> %s", c.Node, old, next)
	case controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_HANDOVER, controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_PARTITION:
		return fmt.Sprintf("partition %d: %s -> %s", c.GetPartition(), old, next)
	case controllerv1.PlannedChangeKind_PLANNED_CHANGE_KIND_OPTION:
		return fmt.Sprintf("%s: %s -> %s", c.Option, old, next)
	default:
		return fmt.Sprintf("%s -> %s", old, next)
	}
}
