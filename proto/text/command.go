package text

// Command is what a request asks for.
type Command uint8

const (
	CmdNone Command = iota
	CmdGet
	CmdGets
	CmdSet
	CmdAdd
	CmdReplace
	CmdAppend
	CmdPrepend
	CmdCas
	CmdIncr
	CmdDecr
	CmdDelete
	CmdTouch
	CmdGat
	CmdKeys
	CmdDump
	CmdDumpKey
	CmdFlushAll
	CmdPing
	CmdVersion
	CmdVerbosity
	CmdStats
	CmdShow
	CmdKill
	CmdQuit
	CmdNodeSync
	CmdReplicate
	CmdOrphanScan
	CmdOrphanPurge
	CmdDigest
	CmdMeta
	CmdNodeAdd
	CmdNodeRole
	CmdNodeState
	CmdNodeRemove
	CmdNodeHello
	CmdNodeBehind
	CmdNodeHandover
	CmdShutdown
	commandCount
)

var commandWords = [commandCount]string{
	CmdNone:         "none",
	CmdGet:          "get",
	CmdGets:         "gets",
	CmdSet:          "set",
	CmdAdd:          "add",
	CmdReplace:      "replace",
	CmdAppend:       "append",
	CmdPrepend:      "prepend",
	CmdCas:          "cas",
	CmdIncr:         "incr",
	CmdDecr:         "decr",
	CmdDelete:       "delete",
	CmdTouch:        "touch",
	CmdGat:          "gat",
	CmdKeys:         "keys",
	CmdDump:         "dump",
	CmdDumpKey:      "dump_key",
	CmdFlushAll:     "flush_all",
	CmdPing:         "ping",
	CmdVersion:      "version",
	CmdVerbosity:    "verbosity",
	CmdStats:        "stats",
	CmdShow:         "show",
	CmdKill:         "kill",
	CmdQuit:         "quit",
	CmdNodeSync:     "node sync",
	CmdReplicate:    "replicate",
	CmdOrphanScan:   "orphan_scan",
	CmdOrphanPurge:  "orphan_purge",
	CmdDigest:       "digest",
	CmdMeta:         "meta",
	CmdNodeAdd:      "node add",
	CmdNodeRole:     "node role",
	CmdNodeState:    "node state",
	CmdNodeRemove:   "node remove",
	CmdNodeHello:    "node hello",
	CmdNodeBehind:   "node behind",
	CmdNodeHandover: "node handover",
	CmdShutdown:     "shutdown",
}

// String returns the command as it is written on the wire.
func (c Command) String() string {
	if c < commandCount {
		return commandWords[c]
	}
	return "unknown"
}

// HasData reports whether a data block follows the command line.
func (c Command) HasData() bool { return c >= CmdSet && c <= CmdCas }

// IsWrite reports whether the command changes one key. These are the commands that are executed by the master of the
// key's partition, forwarded to it by all other nodes, and replicated.
func (c Command) IsWrite() bool { return c >= CmdSet && c <= CmdGat }

// CommandSet is the set of commands a server knows; all others are ERROR.
type CommandSet uint64

// Commands returns the set of the given commands.
func Commands(cmds ...Command) CommandSet {
	var s CommandSet
	for _, c := range cmds {
		s |= 1 << c
	}
	return s
}

// Has reports whether c is in s.
func (s CommandSet) Has(c Command) bool { return s&(1<<c) != 0 }

// common is what both kinds of server answer.
const common CommandSet = 1<<CmdPing | 1<<CmdVersion | 1<<CmdVerbosity | 1<<CmdStats | 1<<CmdShow | 1<<CmdKill | 1<<CmdQuit

const (
	// NodeCommands is what a storage node answers.
	NodeCommands = common | (1<<(CmdFlushAll+1) - 1<<CmdGet) | 1<<CmdNodeSync | 1<<CmdReplicate |
		1<<CmdOrphanScan | 1<<CmdOrphanPurge | 1<<CmdDigest
	// IndexCommands is what an index server answers.
	IndexCommands = common | 1<<CmdMeta | 1<<CmdNodeAdd | 1<<CmdNodeRole | 1<<CmdNodeState | 1<<CmdNodeRemove |
		1<<CmdNodeHello | 1<<CmdNodeBehind | 1<<CmdNodeHandover | 1<<CmdShutdown
)
