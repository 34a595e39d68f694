package text

import (
	"strconv"

	"github.com/flarekv/flare/proto/topology"
)

// AppendRequest appends req in the form nodes send it to each other, prefixed with the list of nodes in via unless
// that is empty. What req itself says about its way (Proxied, Via) is not used: a forwarding node adds itself to the
// list, and reads are sent without one.
//
// Exptime is written as it is, so it must be absolute; a version only if it is not 0, except with cas. The request
// must hold what parsing accepts: keys without space, LF and NUL, and not too long.
func AppendRequest(dst []byte, req *Request, via []string) []byte {
	if len(via) > 0 {
		dst = append(dst, '<')
		for i, key := range via {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, key...)
		}
		dst = append(dst, '>')
	}
	dst = append(dst, req.Command.String()...)
	switch req.Command {
	case CmdGet, CmdGets:
		dst = appendKeys(dst, req)
	case CmdKeys:
		dst = appendInt(appendKeys(dst, req), int64(req.Limit))
	case CmdSet, CmdAdd, CmdReplace, CmdAppend, CmdPrepend, CmdCas:
		dst = appendKeys(dst, req)
		dst = appendUint(dst, uint64(req.Flags))
		dst = appendInt(dst, req.Exptime)
		dst = appendUint(dst, uint64(len(req.Data)))
		if req.Version > 0 || req.Command == CmdCas {
			dst = appendUint(dst, req.Version)
		}
		return appendData(appendOptions(dst, req, true), req.Data)
	case CmdIncr, CmdDecr:
		dst = appendOptions(appendUint(appendKeys(dst, req), req.Delta), req, true)
	case CmdDelete:
		dst = appendInt(appendKeys(dst, req), req.Exptime)
		if req.Version > 0 {
			dst = appendUint(dst, req.Version)
		}
		dst = appendOptions(dst, req, true)
	case CmdTouch, CmdGat:
		dst = appendOptions(appendInt(appendKeys(dst, req), req.Exptime), req, false)
	case CmdDump, CmdDumpKey:
		dst = appendDump(dst, req)
	case CmdFlushAll:
		if req.Exptime != 0 {
			dst = appendInt(dst, req.Exptime)
		}
		dst = appendOptions(dst, req, false)
	case CmdVerbosity:
		dst = appendOptions(append(dst, " 1"...), req, false)
	case CmdStats, CmdShow:
		for _, w := range req.Args {
			dst = append(append(dst, ' '), w...)
		}
	case CmdKill:
		dst = appendInt(dst, req.ThreadID)
	case CmdOrphanPurge:
		if req.Rate > 0 {
			dst = appendInt(dst, int64(req.Rate))
		}
	case CmdDigest:
		d := &req.Digest
		dst = appendWord(dst, d.Meta.Hash.String())
		for _, n := range []int{d.Meta.Hint, d.Meta.Virtual, d.Meta.PartitionSize, d.Partitions, d.Buckets} {
			dst = appendInt(dst, int64(n))
		}
	case CmdNodeSync:
		if req.HasVersion {
			dst = appendUint(dst, req.Version)
		}
		return AppendNodes(append(dst, crlf...), req.Nodes, extended(req.Nodes))
	case CmdReplicate:
		rep := &req.Replicate
		dst = appendWord(dst, rep.Self)
		dst = appendInt(dst, int64(rep.Partition))
		dst = appendWord(dst, orDash(rep.History))
		dst = appendUint(dst, rep.Position.Epoch)
		dst = appendUint(dst, rep.Position.Index)
		dst = appendInt(dst, int64(rep.Proto))
	case CmdShutdown, CmdNodeAdd, CmdNodeRole, CmdNodeState, CmdNodeRemove, CmdNodeHello, CmdNodeBehind, CmdNodeHandover:
		dst = appendNodeArgs(dst, req)
	}
	return append(dst, crlf...)
}

func appendKeys(dst []byte, req *Request) []byte {
	for _, k := range req.Keys {
		dst = append(append(dst, ' '), k...)
	}
	return dst
}

// appendOptions appends the options in the order C++ nodes do.
func appendOptions(dst []byte, req *Request, all bool) []byte {
	if req.NoReply {
		dst = append(dst, " noreply"...)
	}
	if all && req.Sync {
		dst = append(dst, " sync"...)
	}
	if all && req.Async {
		dst = append(dst, " async"...)
	}
	return dst
}

func appendDump(dst []byte, req *Request) []byte {
	d := req.Dump
	if d.Partitions == 0 {
		d.Partition = topology.NoPartition
	}
	if req.Command == CmdDump {
		if d.Wait == 0 && d.Partitions == 0 && d.Bandwidth == 0 {
			return dst
		}
		dst = appendInt(dst, d.Wait)
	}
	if d.Partitions != 0 || d.Bandwidth != 0 {
		dst = appendInt(appendInt(dst, int64(d.Partition)), int64(d.Partitions))
	}
	if d.Bandwidth != 0 {
		dst = appendInt(dst, d.Bandwidth)
	}
	return dst
}

func appendNodeArgs(dst []byte, req *Request) []byte {
	n := &req.Node
	dst = appendInt(appendWord(dst, n.Name), int64(n.Port))
	switch req.Command {
	case CmdNodeRole:
		dst = appendWord(dst, n.Role.String())
		dst = appendInt(appendInt(dst, int64(n.Balance)), int64(n.Partition))
		if n.AllowDataLoss {
			dst = appendWord(dst, allowDataLoss)
		}
	case CmdNodeState:
		dst = appendWord(dst, n.State.String())
		if n.AllowDataLoss && n.State == topology.Active {
			dst = appendWord(dst, allowDataLoss)
		} else if n.HasSession && n.State == topology.Active {
			dst = appendGrant(dst, n)
		}
	case CmdNodeHandover:
		dst = appendInt(appendWord(dst, n.Target), int64(n.TargetPort))
		dst = appendUint(appendUint(appendUint(dst, n.Epoch), n.Session), n.Paused)
	case CmdNodeBehind:
		dst = appendGrant(dst, n)
	case CmdNodeHello:
		dst = append(append(dst, " instance="...), n.Instance...)
		dst = strconv.AppendInt(append(dst, " partition="...), int64(n.Partition), 10)
		dst = strconv.AppendUint(append(dst, " epoch="...), n.Position.Epoch, 10)
		dst = strconv.AppendUint(append(dst, " index="...), n.Position.Index, 10)
		dst = append(append(dst, " history="...), orDash(n.History)...)
	}
	return dst
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// extended reports whether the epochs of the nodes have something to say.
func extended(nodes []topology.Node) bool {
	for _, n := range nodes {
		if n.Epoch != 0 {
			return true
		}
	}
	return false
}

// appendGrant appends the in-sync grant that a request is about.
func appendGrant(dst []byte, n *NodeArgs) []byte {
	dst = appendUint(appendUint(dst, n.Epoch), n.Session)
	if n.Partition >= 0 {
		dst = appendInt(dst, int64(n.Partition))
	}
	return dst
}
