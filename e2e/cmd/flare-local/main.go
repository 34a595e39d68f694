// Command flare-local runs a 2 x 2 flare cluster as plain processes until it
// is interrupted: a first taste without Kubernetes.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flarekv/flare/e2e/procs"
	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
)

func main() {
	bin := flag.String("bin", "build/bin", "directory of flared, flare-agent and flare-controller")
	dir := flag.String("dir", "", "directory for data and logs (default: a temporary one, removed at the end)")
	partitions := flag.Int("partitions", 2, "number of partitions")
	replicas := flag.Int("replicas", 2, "nodes per partition, master included")
	flag.Parse()
	if err := run(*bin, *dir, *partitions, *replicas); err != nil {
		fmt.Fprintln(os.Stderr, "flare-local:", err)
		os.Exit(1)
	}
}

func run(bin, dir string, partitions, replicas int) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if dir == "" {
		if dir, err = os.MkdirTemp("", "flare-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	start := time.Now()
	fmt.Printf("starting a controller and %d nodes (logs in %s)\n", partitions*replicas, dir)
	c, err := procs.Start(procs.Options{BinDir: bin, Dir: dir, Partitions: partitions, Replicas: replicas})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Println("stopping")
		if e := c.Stop(); err == nil {
			err = e
		}
	}()
	wait, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := c.WaitReady(wait); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	topology, err := c.Topology(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("ready after %.1f s\n\n", time.Since(start).Seconds())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE (memcached)\tROLE\tPARTITION\tZONE\tAGENT (gRPC)")
	for _, n := range topology.Nodes {
		agent := ""
		if local := c.NodeByAddr(n.Node); local != nil {
			agent = local.AgentAddr
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", n.Node, n.Role.String()[len("ROLE_"):], agentv1.PartitionNumber(n.Partition), n.Zone, agent)
	}
	w.Flush()
	host, port, _ := net.SplitHostPort(c.Nodes[0].Addr)
	fmt.Printf("\nindex protocol %s, controller gRPC %s, controller HTTP %s\n", c.IndexAddr, c.ControllerAddr, c.ControllerHTTP)
	fmt.Printf("\ntry: exec 3<>/dev/tcp/%s/%s; printf 'set k 0 0 5\\r\\nhello\\r\\nget k\\r\\nquit\\r\\n' >&3; cat <&3\n", host, port)
	fmt.Printf("     edit %s and watch the agents apply it\n", c.Manifest)
	fmt.Println("stop with Ctrl-C")
	<-ctx.Done()
	return nil
}
