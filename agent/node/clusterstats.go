package node

import (
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/flarekv/flare/proto/flare/agent/v1"
	"github.com/flarekv/flare/proto/text"
)

// clusterStatus tells about the replication to another cluster; nil while it is
// switched off.
func (s *Server) clusterStatus() *agentv1.ClusterReplication {
	o := s.live.Load().ClusterReplication
	if !o.Enabled {
		return nil
	}
	st := &agentv1.ClusterReplication{
		Mode:          string(o.Mode),
		Forwarded:     s.forwards.answered.Load(),
		ForwardFailed: s.forwards.failed.Load(),
		Dump:          &agentv1.ClusterDump{},
	}
	if o.ServerName == "" {
		st.Reason, st.Error = "no_destination", "cluster-replication-server-name is not set"
		return st
	}
	st.Destination = clusterAddr(o)
	// Asked for before the queue is looked at: what is queued then is all there is.
	st.Held = s.hold.settled()
	r, active := s.relays.cluster()
	if !active {
		return st
	}
	st.Active, st.Connected, st.Reason, st.Error = true, r.Connected, r.Reason, r.Error
	st.Acked, st.QueuedBatches, st.QueuedBytes, st.Lag = lsnProto(r.Acked), r.QueuedBatches, uint64(r.QueuedBytes), durationpb.New(r.Lag)
	st.Sent, st.Failed, st.Dropped, st.Retried, st.Reconnects = r.Sent, r.Failed, r.Dropped, r.Retried, r.Reconnects
	f := r.Fill
	st.Dump = &agentv1.ClusterDump{
		Running: f.Running, Due: f.Due, Completed: f.Done, Records: f.Records, Bytes: f.Bytes, Total: f.Total, Percent: uint32(f.Percent()),
	}
	return st
}

// appendClusterStats appends the same to the answer of stats.
func (s *Server) appendClusterStats(dst []byte) []byte {
	st := s.clusterStatus()
	if st == nil {
		return dst
	}
	str := func(name, value string) { dst = text.AppendStat(dst, "cluster_replication_"+name, value) }
	num := func(name string, v uint64) { str(name, strconv.FormatUint(v, 10)) }
	state := "inactive" // no master, or mode forward from the start
	switch {
	case st.Reason != "":
		state = st.Reason
	case st.Dump.Running:
		state = "dump"
	case st.Connected:
		state = "connected"
	case st.Active:
		state = "connecting"
	}
	str("mode", st.Mode)
	str("destination", st.Destination)
	str("state", state)
	num("queued_batches", st.QueuedBatches)
	num("queued_bytes", st.QueuedBytes)
	str("lag_seconds", strconv.FormatFloat(st.Lag.AsDuration().Seconds(), 'f', 3, 64))
	num("sent", st.Sent)
	num("failed", st.Failed)
	num("dropped", st.Dropped)
	num("retried", st.Retried)
	num("reconnects", st.Reconnects)
	num("dumps", st.Dump.Completed)
	num("dump_records", st.Dump.Records)
	num("dump_bytes", st.Dump.Bytes)
	num("dump_total", st.Dump.Total)
	num("dump_percent", uint64(st.Dump.Percent))
	num("forwarded", st.Forwarded)
	num("forward_failed", st.ForwardFailed)
	return dst
}
