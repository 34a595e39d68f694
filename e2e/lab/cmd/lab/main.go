// Command lab puts a real Kubernetes on this machine for the end-to-end
// suites, breaks it on demand, and removes it without a trace.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/flarekv/flare/e2e/lab"
)

const usage = `usage: lab VERB ...

  build                       fetch and compile all that the lab runs (first time: minutes)
  up [-nodes 3]               make sure a healthy lab is up
  down                        remove the lab
  status                      say how the lab is; fails if it is not healthy
  env                         print KUBECONFIG and PATH for eval "$(lab env)"
  load IMAGE.tar...           import image archives into every node

  node stop|start N           cut the power of node N, give it back
  node kubelet-stop|kubelet-start N
  node cut|heal N             pull the network cable of node N, plug it in
  node cut-from N M           drop what nodes N and M send each other; heal undoes it
  node exec N COMMAND...      run a command inside node N

  volume fill NAMESPACE PVC [LEAVE_BYTES]
  volume free NAMESPACE PVC
`

var errUsage = errors.New("wrong use")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := do(ctx, os.Args[1:])
	if err == nil {
		return
	}
	// What ran inside a node has already said what was wrong.
	if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	if errors.Is(err, errUsage) {
		fmt.Fprint(os.Stderr, "\n", usage)
		os.Exit(2)
	}
	os.Exit(1)
}

func do(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no verb given", errUsage)
	}
	verb, args := args[0], args[1:]
	if verb == "help" || verb == "-h" || verb == "--help" {
		fmt.Print(usage)
		return nil
	}
	l, err := lab.Open("")
	if err != nil {
		return err
	}
	switch verb {
	case "build":
		return l.Build(ctx, os.Stdout)
	case "up":
		flags := flag.NewFlagSet("up", flag.ContinueOnError)
		nodes := flags.Int("nodes", 3, "number of nodes")
		if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
			return fmt.Errorf("%w: up takes no more than -nodes NUMBER", errUsage)
		}
		return l.Up(ctx, os.Stdout, *nodes)
	case "down":
		return l.Down(ctx, os.Stdout)
	case "status":
		st, err := l.Status(ctx)
		if err != nil {
			return err
		}
		fmt.Print(st)
		if !st.Healthy {
			return errors.New("the lab is not healthy")
		}
		return nil
	case "env":
		for name, value := range l.Env() {
			fmt.Printf("export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		}
		return nil
	case "load":
		if len(args) == 0 {
			return fmt.Errorf("%w: load needs the path of an image archive", errUsage)
		}
		return l.LoadImages(ctx, args...)
	case "node":
		return node(ctx, l, args)
	case "volume":
		return volume(ctx, l, args)
	}
	return fmt.Errorf("%w: there is no verb %q", errUsage, verb)
}

func node(ctx context.Context, l *lab.Lab, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%w: node needs a verb and a number", errUsage)
	}
	verb, rest := args[0], args[2:]
	n, err := nodeNumber(args[1])
	if err != nil {
		return err
	}
	simple := map[string]func(context.Context, int) error{
		"stop": l.StopNode, "start": l.StartNode,
		"kubelet-stop": l.StopKubelet, "kubelet-start": l.StartKubelet,
		"cut": l.CutNode, "heal": l.HealNode,
	}
	switch {
	case simple[verb] != nil && len(rest) == 0:
		return simple[verb](ctx, n)
	case verb == "cut-from" && len(rest) == 1:
		m, err := nodeNumber(rest[0])
		if err != nil {
			return err
		}
		return l.CutNodeFrom(ctx, n, m)
	case verb == "exec" && len(rest) > 0:
		cmd, err := l.NodeCommand(ctx, n, rest...)
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("%w: node %s", errUsage, strings.Join(args, " "))
}

// nodeNumber takes a node's name as well.
func nodeNumber(arg string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(arg, "n"))
	if err != nil {
		return 0, fmt.Errorf("%w: %q is no node: give its number, such as 2", errUsage, arg)
	}
	return n, nil
}

func volume(ctx context.Context, l *lab.Lab, args []string) error {
	switch {
	case len(args) == 3 && args[0] == "free":
		return l.FreeVolume(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "fill":
		return l.FillVolume(ctx, args[1], args[2], 0)
	case len(args) == 4 && args[0] == "fill":
		leave, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil {
			return fmt.Errorf("%w: LEAVE_BYTES %q is not a number", errUsage, args[3])
		}
		return l.FillVolume(ctx, args[1], args[2], leave)
	}
	return fmt.Errorf("%w: volume %s", errUsage, strings.Join(args, " "))
}
