//go:build e2e

package suites

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	controllerv1 "github.com/flarekv/flare/proto/flare/controller/v1"
)

// TestBlueGreen moves a release of two partitions to one of a single partition in
// another namespace, while clients write, with the leading controller's pod deleted in
// each phase. After the cut-over every acknowledged write is read through the pods of
// both.
func TestBlueGreen(t *testing.T) {
	green := installAs(t, release, "flare-green", "-f", smallValues, "--set", "partitions=1")
	// The copy is slowed down, so that there is something to interrupt.
	blue := install(t, "-f", smallValues, "--set", "partitions=2,node.extraArgs={--reconstruction-interval=3000}")
	green.eventually(90*time.Second, "green is settled", green.settled(1, 2))
	blue.eventually(90*time.Second, "blue is settled", blue.settled(2, 2))
	m := client(blue.service())
	for i := range keys {
		if err := m.Set(&memcache.Item{Key: key(i), Value: []byte(value(i)), Flags: uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	l := blue.startLoad(t)
	l.passes()
	step := func(name string, f func()) {
		blue.step(t, name, func(t *testing.T) { green.t = t; f() })
		green.t = t
	}
	step("dumping", func() {
		l.so()
		blue.upgrade("clusterReplication.enabled=true,clusterReplication.target=" + release + ".flare-green.svc:12121")
		blue.phase(controllerv1.ReplicationPhase_REPLICATION_PHASE_DUMPING)
		blue.replaceLeader()
		blue.t.Logf("ClusterReplication: %s", blue.message("ClusterReplication"))
		blue.phase(controllerv1.ReplicationPhase_REPLICATION_PHASE_FORWARDING)
		l.passes()
		l.smooth("meanwhile")
		blue.wantEvent("dumping", "forwarding")
	})
	step("forwarding", func() {
		blue.replaceLeader()
		blue.phase(controllerv1.ReplicationPhase_REPLICATION_PHASE_FORWARDING)
		l.passes()
		l.smooth("meanwhile")
		l.end()
		defer l.begin()
		blue.eventually(90*time.Second, "green has everything", func() error {
			r := blue.topology().GetReplication()
			if len(r.GetPartitions()) != 2 || slices.ContainsFunc(r.GetPartitions(), func(p *controllerv1.PartitionReplication) bool {
				return !p.GetConnected() || p.GetReason() != "" || p.GetQueuedBatches() > 0
			}) {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		blue.eventually(60*time.Second, "both are compared", func() error {
			c, err := blue.compare()
			if err == nil && (!c.GetEqual() || !c.GetExact()) {
				err = fmt.Errorf("%v", c)
			}
			if err == nil {
				blue.t.Logf("equal by checksums: %d records here, %d at the target", c.GetRecords(), c.GetTargetRecords())
			}
			return err
		})
	})
	step("cut-over", func() {
		l.so()
		start := time.Now()
		// Refused while the new leader has not heard from each node that it is that far.
		blue.eventually(60*time.Second, "the cut-over is accepted", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := blue.controller().CutOver(ctx, &controllerv1.CutOverRequest{})
			return err
		})
		blue.replaceLeader() // while writes wait, or just after
		blue.phase(controllerv1.ReplicationPhase_REPLICATION_PHASE_CUT_OVER)
		l.passes()
		blue.t.Logf("clients of blue write to green %.1f s after the call: %v", time.Since(start).Seconds(), l.so())
		blue.replaceLeader()
		blue.phase(controllerv1.ReplicationPhase_REPLICATION_PHASE_CUT_OVER)
		l.passes()
		blue.t.Logf("kubectl get flarecluster:\n%s", blue.kubectl("get", "flarecluster", blue.release))
		blue.wantEvent("cutting_over", "cut_over")
		l.check()
		l.c = green
		l.check()
		l.c = blue
		for _, c := range []*cluster{blue, green} {
			c.readAll(client(c.service()), "after the cut-over, through "+c.namespace)
		}
	})
	l.end()
}

// phase waits for a phase of the cluster replication.
func (c *cluster) phase(want controllerv1.ReplicationPhase) {
	c.t.Helper()
	took := c.eventually(120*time.Second, want.String(), func() error {
		if r := c.topology().GetReplication(); r.GetPhase() != want {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.t.Logf("%v after %.1f s", want, took.Seconds())
}

// replaceLeader kills the pod of the leading controller, and waits until another leads.
func (c *cluster) replaceLeader() {
	c.t.Helper()
	was := c.leader().Metadata.Name
	c.kill(was)
	took := c.eventually(60*time.Second, "another controller leads", func() error {
		if now := c.leader().Metadata.Name; now == was {
			return errors.New(now)
		}
		return nil
	})
	c.t.Logf("controller %s was killed; another leads after %.1f s", was, took.Seconds())
}

func (c *cluster) compare() (*controllerv1.ClusterComparison, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := c.controller().CompareClusters(ctx, &controllerv1.CompareClustersRequest{Rounds: 2})
	if err != nil {
		return nil, err
	}
	var last *controllerv1.CompareClustersResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last.GetComparison(), nil
		}
		if err != nil {
			return nil, err
		}
		last = m
	}
}
