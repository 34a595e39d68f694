package node

import (
	"errors"
	"fmt"

	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// commands is what this node answers; everything else is ERROR.
var commands = text.Commands(
	text.CmdGet, text.CmdGets, text.CmdSet, text.CmdAdd, text.CmdReplace, text.CmdAppend, text.CmdPrepend,
	text.CmdCas, text.CmdIncr, text.CmdDecr, text.CmdDelete, text.CmdTouch, text.CmdGat, text.CmdFlushAll,
	text.CmdKeys, text.CmdDump, text.CmdDumpKey, text.CmdShow, text.CmdKill,
	text.CmdPing, text.CmdVersion, text.CmdVerbosity, text.CmdStats, text.CmdQuit, text.CmdNodeSync, text.CmdReplicate,
	text.CmdOrphanScan, text.CmdOrphanPurge, text.CmdDigest,
)

// command answers what is not about keys; false ends the connection.
func (s *Server) command(c *conn, req *text.Request) bool {
	switch req.Command {
	case text.CmdPing:
		switch {
		case s.watcher.slow.Load():
			c.out = append(c.out, text.ReplyStorageError...)
		case s.standDown.down.Load():
			// The index would take a node that answers for one that is back.
			c.out = text.AppendServerError(c.out, reasonResyncFailed)
		default:
			c.out = append(c.out, text.ReplyOK...)
		}
	case text.CmdVersion:
		c.out = text.AppendVersion(c.out, "flare-"+s.version)
	case text.CmdVerbosity:
		c.reply(text.ReplyOK)
	case text.CmdStats:
		s.stats(c, req)
	case text.CmdShow:
		c.out = s.appendVariables(c.out)
	case text.CmdKeys:
		c.keys(req)
	case text.CmdDump, text.CmdDumpKey:
		return c.dump(req)
	case text.CmdOrphanScan, text.CmdOrphanPurge:
		return c.orphans(req)
	case text.CmdDigest:
		return c.digest(req)
	case text.CmdKill:
		if s.tasks.kill(req.ThreadID) {
			c.out = append(c.out, text.ReplyOK...)
		} else {
			c.out = append(c.out, text.ReplyThreadNotFound...)
		}
	case text.CmdFlushAll:
		s.flushAll(c)
	case text.CmdNodeSync:
		s.nodeSync(c, req)
	case text.CmdReplicate:
		s.replicate(c, req)
		return false
	case text.CmdQuit:
		return false
	default:
		c.out = append(c.out, text.ReplyError...)
	}
	return true
}

// reply appends a line, unless the request wants no answer.
func (c *conn) reply(line string) {
	if !c.req.NoReply {
		c.out = append(c.out, line...)
	}
}

func (s *Server) stats(c *conn, req *text.Request) {
	what := ""
	if len(req.Args) > 0 {
		what = string(req.Args[0])
	}
	switch what {
	case "":
		n := len(c.out)
		var err error
		if c.out, err = s.appendStats(c.out); err != nil {
			s.limited.warn(s.logger, "statistics are not available", "error", err)
			c.out = append(c.out[:n], text.ReplyIOError...)
		}
	case "nodes":
		c.out = s.appendNodeStats(c.out)
	case "threads":
		part := ""
		if len(req.Args) > 1 {
			part = string(req.Args[1])
		}
		c.out = s.appendThreads(c.out, part)
	case "settings":
		c.out = s.appendSettings(c.out)
	case "items", "slabs", "sizes":
		c.out = append(c.out, text.ReplyEnd...)
	default:
		c.out = append(c.out, text.ReplyError...)
	}
}

// nodeSync installs a node map. It takes no lock that anything slow holds, so
// the index is always answered at once.
func (s *Server) nodeSync(c *conn, req *text.Request) {
	err := s.maps.push(topology.NewMap(req.Version, req.Nodes))
	if errors.Is(err, errOldMap) {
		s.logger.Warn("node map refused", "reason", "old_map", "from", c.nc.RemoteAddr().String(), "error", err)
		c.out = append(c.out, text.ReplyNodeSyncError...)
		return
	}
	t := s.maps.table()
	s.peers.retain(func(node string) bool {
		n, known := t.nodes.Find(node)
		return known && n.State != topology.Down
	}, s.failoverWait+retryPause)
	c.out = append(c.out, text.ReplyOK...)
}

// flushAll removes all records. Replicas hold exactly what their master held at
// the same position, so only the master of a partition can do it for them.
func (s *Server) flushAll(c *conn) {
	d := dutyOf(s.maps.table())
	switch d.kind {
	case dutySlave:
		c.reply(fmt.Sprintf("SERVER_ERROR not_master: flush_all goes to the partition's master %s\r\n", d.master))
		return
	case dutyNone:
		err := s.roles.whileIdle(s.db.Wipe)
		if err != nil {
			s.logger.Error("flush_all failed", "error", err)
			c.reply(text.ReplyUnknownError)
			return
		}
		s.logger.Warn("local database wiped by flush_all", "from", c.nc.RemoteAddr().String())
		c.reply(text.ReplyOK)
		return
	}
	if state, reason := s.enough(&c.req); state != gateOpen {
		c.reply("SERVER_ERROR " + reason + "\r\n")
		return
	}
	if state, reason := s.gate.enter(d.partition); state != gateOpen {
		c.reply("SERVER_ERROR " + reason + "\r\n")
		return
	}
	lsn, err := s.db.FlushAll(s.ctx)
	s.gate.leave()
	if err != nil {
		s.logger.Error("flush_all failed", "error", err)
		c.reply(text.ReplyUnknownError)
		return
	}
	s.logger.Warn("partition emptied by flush_all", "partition", d.partition, "lsn", lsn.String(),
		"from", c.nc.RemoteAddr().String())
	if s.replicated(&c.req) && s.awaitReplicas(lsn) != nil {
		c.reply(text.ReplyReplicationTime)
		return
	}
	c.reply(text.ReplyOK)
}
