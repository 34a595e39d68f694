package core

import (
	"fmt"
	"testing"
)

// BenchmarkStep takes what comes all the time, a tick and a report, in clusters of a
// hundred and of a thousand nodes.
func BenchmarkStep(b *testing.B) {
	for _, partitions := range []int{50, 500} {
		s := formed(b, partitions)
		report := AgentReport{Key: "flare-node-7.flare-nodes.default.svc:12121", Alive: true, Instance: "i", Serving: true, DataPartition: 7}
		b.Run(fmt.Sprintf("report/nodes=%d", 2*partitions), func(b *testing.B) {
			for b.Loop() {
				report.LSN.Index++
				Advance(&s, report, false, false)
			}
		})
		b.Run(fmt.Sprintf("tick/nodes=%d", 2*partitions), func(b *testing.B) {
			for b.Loop() {
				Advance(&s, Tick{Now: s.Now + 1}, false, false)
			}
		})
	}
}

// formed returns a cluster of partitions of two nodes.
func formed(b *testing.B, partitions int) State {
	s := New(Durable{})
	feed := func(in Input) {
		queue := []Input{in}
		for len(queue) > 0 {
			var effects []Effect
			effects, _, _ = Advance(&s, queue[0], false, false)
			queue = queue[1:]
			for _, e := range effects {
				switch e := e.(type) {
				case Persist:
					queue = append(queue, Persisted{Seq: e.Durable.Seq})
				case WriteStatus:
					queue = append(queue, Done{Request: RequestStatus, Seq: e.Seq})
				case WriteConfig:
					queue = append(queue, Done{Request: RequestConfig, Seq: e.Seq})
				case LabelNodes:
					queue = append(queue, Done{Request: RequestLabels, Seq: e.Seq})
				}
			}
		}
	}
	feed(Tick{Now: 1})
	feed(SpecChanged{Spec: Spec{Generation: 1, Partitions: partitions, Replicas: 2, Meta: New(Durable{}).Durable.Meta}})
	for i := range 2 * partitions {
		name := fmt.Sprintf("flare-node-%d.flare-nodes.default.svc", i)
		feed(Command{ID: uint64(2 * i), Verb: VerbAdd, Name: name, Port: 12121})
		feed(Command{ID: uint64(2*i + 1), Verb: VerbHello, Name: name, Port: 12121, Hello: Hello{Instance: "i", Partition: -1}})
	}
	if len(s.Durable.Partitions) != partitions {
		b.Fatalf("%d partitions", len(s.Durable.Partitions))
	}
	return s
}
