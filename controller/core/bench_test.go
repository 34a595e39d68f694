package core

import (
	"fmt"
	"testing"
)

// BenchmarkStep takes a report of one node of a cluster of a hundred.
func BenchmarkStep(b *testing.B) {
	s := New(Durable{})
	feed := func(in Input) {
		queue := []Input{in}
		for len(queue) > 0 {
			var effects []Effect
			s, effects = Step(s, queue[0])
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
	feed(SpecChanged{Spec: Spec{Generation: 1, Partitions: 50, Replicas: 2, Meta: New(Durable{}).Durable.Meta}})
	for i := range 100 {
		name := fmt.Sprintf("flare-node-%d.flare-nodes.default.svc", i)
		feed(Command{ID: uint64(2 * i), Verb: VerbAdd, Name: name, Port: 12121})
		feed(Command{ID: uint64(2*i + 1), Verb: VerbHello, Name: name, Port: 12121, Hello: Hello{Instance: "i", Partition: -1}})
	}
	if len(s.Durable.Partitions) != 50 {
		b.Fatalf("%d partitions", len(s.Durable.Partitions))
	}
	report := AgentReport{Key: "flare-node-7.flare-nodes.default.svc:12121", Alive: true, Instance: "i", Serving: true, DataPartition: 7}
	for b.Loop() {
		report.LSN.Index++
		s, _ = Step(s, report)
	}
}
