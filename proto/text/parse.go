package text

import (
	"bytes"
	"math"
	"strings"

	"github.com/flarekv/flare/proto/topology"
)

// parser reads one command line into a request.
type parser struct {
	tokens
	req    *Request
	reader *Reader
	size   int // announced length of the data block
}

func refuse(reason Reason) *ProtocolError { return &ProtocolError{Reply: ReplyError, Reason: reason} }

// parse reads the line. If it is refused but announces a data block, the reader is told to expect that.
func (p *parser) parse() *ProtocolError {
	hops := p.proxied()
	start := p.pos
	e := p.command()
	switch {
	case e != nil:
	case bytes.IndexByte(p.line, 0) >= 0:
		// C++ stops reading the line there and would act on less than was asked for.
		e = refuse(ReasonNulByte)
	case !hops:
		// A list this long comes from nodes that send a request in circles.
		e = &ProtocolError{Reply: ReplyTooManyHops, Reason: ReasonTooManyHops}
		if p.req.NoReply {
			e.Reply = ""
		}
	case !p.reader.opts.Commands.Has(p.req.Command):
		e = refuse(ReasonUnknownCommand)
	}
	if e != nil && p.req.Command.HasData() {
		p.pos = start
		p.reader.rejected = p.announced()
	}
	return e
}

// announced returns the length in a storage command that may be wrong anywhere else, -1 if it cannot be told.
func (p *parser) announced() int {
	for range 4 { // command, key, flags, exptime
		p.word()
	}
	if n, ok := parseUint(p.word()); ok && n <= MaxLength {
		return int(n)
	}
	return -1
}

// proxied reads the <list> a request may begin with. It reports false for too long a list.
func (p *parser) proxied() bool {
	p.spaces()
	rest := p.line[p.pos:]
	if len(rest) == 0 || rest[0] != '<' {
		return true
	}
	end := bytes.IndexByte(rest, '>')
	if end < 0 {
		return true // an ordinary, if unknown, command
	}
	p.pos += end + 1
	p.req.Proxied = true
	list := rest[1:end]
	if bytes.Count(list, []byte{','}) >= maxHops {
		return false
	}
	r := p.reader
	if r.via == nil || !bytes.Equal(list, r.prefix) {
		r.prefix = append(r.prefix[:0], list...)
		r.via = []string{}
		for key := range strings.SplitSeq(string(list), ",") {
			if key != "" {
				r.via = append(r.via, key)
			}
		}
	}
	p.req.Via = r.via[:len(r.via):len(r.via)]
	return true
}

// command reads the rest of the line. The request's Command is set as soon as it is known.
func (p *parser) command() *ProtocolError {
	req := p.req
	switch string(p.word()) {
	case "get":
		req.Command = CmdGet
		return p.keys()
	case "gets":
		req.Command = CmdGets
		return p.keys()
	case "set":
		req.Command = CmdSet
		return p.store()
	case "add":
		req.Command = CmdAdd
		return p.store()
	case "replace":
		req.Command = CmdReplace
		return p.store()
	case "append":
		req.Command = CmdAppend
		return p.store()
	case "prepend":
		req.Command = CmdPrepend
		return p.store()
	case "cas":
		req.Command = CmdCas
		return p.store()
	case "incr":
		req.Command = CmdIncr
		return p.arithmetic()
	case "decr":
		req.Command = CmdDecr
		return p.arithmetic()
	case "delete":
		req.Command = CmdDelete
		return p.delete()
	case "touch":
		req.Command = CmdTouch
		return p.touch()
	case "gat":
		req.Command = CmdGat
		return p.touch()
	case "keys":
		req.Command = CmdKeys
		return p.prefixes()
	case "dump":
		req.Command = CmdDump
		return p.dump(true)
	case "dump_key":
		req.Command = CmdDumpKey
		return p.dump(false)
	case "flush_all":
		req.Command = CmdFlushAll
		return p.flushAll()
	case "ping":
		req.Command = CmdPing
		return p.end()
	case "version":
		req.Command = CmdVersion
		return nil // memcached ignores further words too, and its clients' tests ask with some
	case "meta":
		req.Command = CmdMeta
		return p.end()
	case "verbosity":
		req.Command = CmdVerbosity
		return p.verbosity()
	case "stats":
		req.Command = CmdStats
		return p.stats()
	case "show":
		req.Command = CmdShow
		req.Args = p.words(req.Args)
		if len(req.Args) == 0 || string(req.Args[0]) != "variables" {
			return refuse(ReasonBadArguments)
		}
		return nil
	case "kill":
		req.Command = CmdKill
		id, ok := parseInt(p.number())
		if !ok {
			return refuse(ReasonBadArguments)
		}
		req.ThreadID = id
		return p.end()
	case "orphan_scan":
		req.Command = CmdOrphanScan
		return p.end()
	case "orphan_purge":
		req.Command = CmdOrphanPurge
		rate, ok := p.optionalInt(1, math.MaxInt32, 0)
		if !ok {
			return refuse(ReasonBadArguments)
		}
		req.Rate = int32(rate)
		return p.end()
	case "digest":
		req.Command = CmdDigest
		return p.digest()
	case "quit":
		req.Command = CmdQuit
		if e := p.end(); e != nil {
			e.Reply = "" // C++ says nothing to this one
			return e
		}
		return nil
	case "shutdown":
		req.Command = CmdShutdown
		if e := p.node(); e != nil {
			return e
		}
		return p.end()
	case "replicate":
		req.Command = CmdReplicate
		return p.replicate()
	case "node":
		return p.nodeCommand()
	}
	return refuse(ReasonUnknownCommand)
}

// end refuses further words.
func (p *parser) end() *ProtocolError {
	if !p.done() {
		return refuse(ReasonBadArguments)
	}
	return nil
}

// key reads a key into the request.
func (p *parser) key() *ProtocolError {
	k := p.word()
	switch {
	case len(k) == 0:
		return refuse(ReasonBadArguments)
	case len(k) > MaxKeyLength:
		return refuse(ReasonKeyTooLong)
	}
	p.req.Keys = append(p.req.Keys, k)
	return nil
}

// keys reads one or more keys.
func (p *parser) keys() *ProtocolError {
	for {
		if e := p.key(); e != nil {
			return e
		}
		if p.done() {
			return nil
		}
	}
}

// options reads noreply and, if allowed, sync and async, in any order and number.
func (p *parser) options(all bool) *ProtocolError {
	for !p.done() {
		switch w := p.word(); {
		case string(w) == "noreply":
			p.req.NoReply = true
		case all && string(w) == "sync":
			p.req.Sync = true
		case all && string(w) == "async":
			p.req.Async = true
		default:
			return refuse(ReasonBadOption)
		}
	}
	return nil
}

// exptime reads an expiry time, which must not be negative.
func (p *parser) exptime() bool {
	n, ok := parseUint(p.number())
	p.req.Exptime = int64(n)
	return ok && n <= math.MaxInt64
}

// version reads a version if there is one.
func (p *parser) version() bool {
	b := p.number()
	if len(b) == 0 {
		return true
	}
	var ok bool
	p.req.Version, ok = parseUint(b)
	p.req.HasVersion = ok
	return ok
}

// store reads: key flags exptime bytes [version] [option]*
func (p *parser) store() *ProtocolError {
	if e := p.key(); e != nil {
		return e
	}
	flags, ok := parseUint(p.number())
	if !ok || flags > math.MaxUint32 {
		return refuse(ReasonBadArguments)
	}
	p.req.Flags = uint32(flags)
	if !p.exptime() {
		return refuse(ReasonBadArguments)
	}
	size, ok := parseUint(p.number())
	if !ok || size > MaxLength {
		return refuse(ReasonBadArguments)
	}
	p.size = int(size)
	if !p.version() || p.req.Command == CmdCas && !p.req.HasVersion {
		return refuse(ReasonBadArguments)
	}
	return p.options(true)
}

// arithmetic reads: key delta [option]*
func (p *parser) arithmetic() *ProtocolError {
	if e := p.key(); e != nil {
		return e
	}
	var ok bool
	if p.req.Delta, ok = parseDelta(p.number()); !ok {
		return refuse(ReasonBadArguments)
	}
	return p.options(true)
}

// delete reads: key [exptime [version]] [option]*
func (p *parser) delete() *ProtocolError {
	if e := p.key(); e != nil {
		return e
	}
	p.spaces()
	if p.pos < len(p.line) && (isDigit(p.line[p.pos]) || p.line[p.pos] == '-') {
		if !p.exptime() || !p.version() {
			return refuse(ReasonBadArguments)
		}
	}
	return p.options(true)
}

// touch reads: key exptime [version] [noreply]
func (p *parser) touch() *ProtocolError {
	if e := p.key(); e != nil {
		return e
	}
	if !p.exptime() || !p.version() {
		return refuse(ReasonBadArguments)
	}
	return p.options(false)
}

// prefixes reads: prefix+ limit
func (p *parser) prefixes() *ProtocolError {
	if e := p.keys(); e != nil {
		return e
	}
	last := len(p.req.Keys) - 1
	limit, ok := parseUint(p.req.Keys[last])
	if !ok || limit == 0 || limit > math.MaxInt32 || last == 0 {
		return refuse(ReasonBadArguments)
	}
	p.req.Keys = p.req.Keys[:last]
	p.req.Limit = int(limit)
	return nil
}

// optionalInt reads a number between lo and hi, or returns absent if there is none.
func (p *parser) optionalInt(lo, hi, absent int64) (int64, bool) {
	b := p.number()
	if len(b) == 0 {
		return absent, true
	}
	n, ok := parseInt(b)
	return n, ok && n >= lo && n <= hi
}

// dump reads: [wait [partition partitions [bandwidth]]], without wait for dump_key. What follows is ignored, a word
// that is no number included.
func (p *parser) dump(wait bool) *ProtocolError {
	d := &p.req.Dump
	ok := true
	if wait {
		d.Wait, ok = p.optionalInt(0, math.MaxInt32, 0)
	}
	partition, ok1 := p.optionalInt(math.MinInt32, math.MaxInt32, -1)
	partitions, ok2 := p.optionalInt(0, math.MaxInt32, 0)
	bandwidth, ok3 := p.optionalInt(0, math.MaxInt32, 0)
	if !ok || !ok1 || !ok2 || !ok3 || partition >= partitions && partition >= 0 || partition < 0 && partitions > 0 {
		return refuse(ReasonBadArguments)
	}
	d.Partition, d.Partitions, d.Bandwidth = int(max(partition, topology.NoPartition)), int(partitions), bandwidth
	return nil
}

// digest reads: hash hint virtual partition-size partitions buckets
func (p *parser) digest() *ProtocolError {
	d := &p.req.Digest
	hash, err := topology.ParseHash(string(p.word()))
	ok := err == nil
	d.Meta.Hash = hash
	for _, n := range []*int{&d.Meta.Hint, &d.Meta.Virtual, &d.Meta.PartitionSize, &d.Partitions, &d.Buckets} {
		v, isNumber := parseInt(p.number())
		ok = ok && isNumber && v >= 1 && v <= maxDigest
		*n = int(v)
	}
	if !ok || d.Meta.Validate() != nil || d.Partitions >= d.Meta.PartitionSize || d.Partitions*d.Buckets > maxDigest {
		return refuse(ReasonBadArguments)
	}
	return p.end()
}

// flushAll reads: [exptime] [noreply]; the time is checked and ignored.
func (p *parser) flushAll() *ProtocolError {
	var ok bool
	if p.req.Exptime, ok = p.optionalInt(math.MinInt64, math.MaxInt64, 0); !ok {
		return refuse(ReasonBadArguments)
	}
	return p.options(false)
}

// verbosity reads: level [noreply]; the level is checked and ignored.
func (p *parser) verbosity() *ProtocolError {
	if n, ok := parseInt(p.number()); !ok || int64(int32(n)) != n {
		return refuse(ReasonBadArguments)
	}
	return p.options(false)
}

// stats reads: [items|slabs|sizes|nodes|settings|threads [request|slave|queue]]
func (p *parser) stats() *ProtocolError {
	p.req.Args = p.words(p.req.Args)
	args := p.req.Args
	if len(args) == 0 {
		return nil
	}
	switch string(args[0]) {
	case "items", "slabs", "sizes", "nodes", "settings":
		return nil
	case "threads":
		if len(args) == 1 {
			return nil
		}
		switch string(args[1]) {
		case "request", "slave", "queue":
			return nil
		}
	}
	return refuse(ReasonBadArguments)
}

// replicate reads: self partition history|- epoch index proto
func (p *parser) replicate() *ProtocolError {
	rep := &p.req.Replicate
	self := p.word()
	partition, ok := parseInt(p.number())
	history := p.word()
	epoch, ok1 := parseUint(p.number())
	index, ok2 := parseUint(p.number())
	proto, ok3 := parseUint(p.number())
	if !ok || !ok1 || !ok2 || !ok3 || partition < 0 || partition > math.MaxInt32 || proto > math.MaxInt32 ||
		len(self) > MaxWordLength || len(history) == 0 || len(history) > MaxWordLength {
		return refuse(ReasonBadArguments)
	}
	if _, _, err := topology.SplitKey(string(self)); err != nil {
		return refuse(ReasonBadArguments)
	}
	rep.Self, rep.Partition, rep.Proto = string(self), int(partition), int(proto)
	rep.History = orNone(history)
	rep.Position = topology.LSN{Epoch: epoch, Index: index}
	return p.end()
}

// orNone reads a word that is "-" if there is nothing to say.
func orNone(w []byte) string {
	if string(w) == "-" {
		return ""
	}
	return string(w)
}

// node reads: name port
func (p *parser) node() *ProtocolError {
	var ok bool
	if p.req.Node.Name, p.req.Node.Port, ok = p.namePort(); !ok {
		return refuse(ReasonBadArguments)
	}
	return nil
}

func (p *parser) namePort() (name string, port int, ok bool) {
	w := p.word()
	n, ok := parseInt(p.number())
	return string(w), int(n), ok && len(w) > 0 && len(w) <= MaxWordLength && int64(int32(n)) == n
}

// nodeCommand reads what follows the word node.
func (p *parser) nodeCommand() *ProtocolError {
	req := p.req
	sub := string(p.word())
	at := p.pos
	switch sub {
	case "sync":
		req.Command = CmdNodeSync
		if !p.reader.opts.Commands.Has(CmdNodeSync) {
			return refuse(ReasonUnknownCommand) // before waiting for a list
		}
		if !p.version() {
			return refuse(ReasonBadArguments)
		}
		return p.end()
	case "add":
		req.Command = CmdNodeAdd
	case "role":
		req.Command = CmdNodeRole
	case "state":
		req.Command = CmdNodeState
	case "remove":
		req.Command = CmdNodeRemove
	case "hello":
		req.Command = CmdNodeHello
	case "behind":
		req.Command = CmdNodeBehind
	case "handover":
		req.Command = CmdNodeHandover
	default:
		return refuse(ReasonUnknownCommand)
	}
	req.Args = p.words(req.Args)
	p.pos = at
	if e := p.node(); e != nil {
		return e
	}
	var e *ProtocolError
	switch req.Command {
	case CmdNodeRole:
		return p.role() // ignores further words
	case CmdNodeState:
		e = p.state()
	case CmdNodeHello:
		e = p.hello()
	case CmdNodeHandover:
		var ok bool
		req.Node.Target, req.Node.TargetPort, ok = p.namePort()
		ok = ok && p.session()
		if req.Node.Paused, _ = parseUint(p.number()); !ok || req.Node.Paused == 0 {
			e = refuse(ReasonBadArguments)
		}
	case CmdNodeBehind:
		if !p.grant() {
			e = refuse(ReasonBadArguments)
		}
	}
	if e != nil {
		return e
	}
	return p.end()
}

// allowDataLoss is the word by which an operator accepts a loss.
const allowDataLoss = "allow_data_loss"

// role reads: role [balance [partition [allow_data_loss]]]
func (p *parser) role() *ProtocolError {
	n := &p.req.Node
	role, err := topology.ParseRole(string(p.word()))
	balance, ok := p.optionalInt(math.MinInt32, math.MaxInt32, -1)
	partition, ok1 := p.optionalInt(math.MinInt32, math.MaxInt32, topology.NoPartition)
	if err != nil || !ok || !ok1 {
		return refuse(ReasonBadArguments)
	}
	n.Role, n.Balance, n.Partition = role, int(balance), int(partition)
	n.AllowDataLoss = string(p.word()) == allowDataLoss
	return nil
}

// state reads: state [epoch session [partition] | allow_data_loss], both only with active
func (p *parser) state() *ProtocolError {
	n := &p.req.Node
	state, err := topology.ParseState(string(p.word()))
	if err != nil {
		return refuse(ReasonBadArguments)
	}
	n.State = state
	if ahead := *p; string(ahead.word()) == allowDataLoss && state == topology.Active {
		*p, n.AllowDataLoss = ahead, true
		return nil
	}
	if state == topology.Active && !p.done() && !p.grant() {
		return refuse(ReasonBadArguments)
	}
	return nil
}

// session reads: epoch session
func (p *parser) session() bool {
	n := &p.req.Node
	epoch, ok := parseUint(p.number())
	session, ok1 := parseUint(p.number())
	n.Epoch, n.Session, n.HasSession = epoch, session, true
	return ok && ok1
}

// grant reads: epoch session [partition]
func (p *parser) grant() bool {
	ok := p.session()
	partition, ok1 := p.optionalInt(0, math.MaxInt32, topology.NoPartition)
	p.req.Node.Partition = int(partition)
	return ok && ok1
}

// hello reads: name=value ... Names it does not know are for later versions.
func (p *parser) hello() *ProtocolError {
	n := &p.req.Node
	n.Partition = topology.NoPartition
	for !p.done() {
		w := p.word()
		name, value, ok := bytes.Cut(w, []byte{'='})
		if len(w) > MaxWordLength || !ok {
			return refuse(ReasonBadArguments)
		}
		switch string(name) {
		case "instance":
			n.Instance = string(value)
		case "history":
			n.History = orNone(value)
		case "partition":
			var v int64
			if v, ok = parseInt(value); ok {
				ok = v >= topology.NoPartition && v <= math.MaxInt32
				n.Partition = int(v)
			}
		case "epoch":
			n.Position.Epoch, ok = parseUint(value)
		case "index":
			n.Position.Index, ok = parseUint(value)
		}
		if !ok {
			return refuse(ReasonBadArguments)
		}
	}
	return nil
}
