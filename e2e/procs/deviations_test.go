package procs

// What follows is everything in which this program says or does something else
// than the recordings of flare 1.3.4, a table for each kind of exchange. Each line
// gives a reason: #n is a line of docs/compatibility.md.

// clientDeviations is every exchange of a client in which this node says something
// else than the original.
var clientDeviations = deviations{
	{cases: "no-partition/*-noreply", why: "#1: nobody reads the error of a request that wants no answer", want: ""},
	{cases: "set-badchunk/err-body-*", why: "#2: the data block of a refused line is not executed", want: "ERROR\r\n"},
	{cases: "keylen-8192/set", why: "#2, #5", want: "ERROR\r\n"},
	{cases: "keylen-8193/set", why: "#2, #5", want: "ERROR\r\n"},
	{cases: "keylen-16000/set", why: "#2, #5", want: "ERROR\r\n"},
	{cases: "keylen-8192/get", why: "#5: too long keys are refused, not cut in two", want: "ERROR\r\n"},
	{cases: "keylen-8193/get", why: "#5", want: "ERROR\r\n"},
	{cases: "keylen-16000/get", why: "#5", want: "ERROR\r\n"},
	{cases: "misc/version-arg", why: "memcached answers it, and memccapable asks it after most of its cases", want: "VERSION flare-V\r\n"},
	{cases: "keys/tch", why: "this storage has its keys in order", want: "KEY b1\r\nKEY big\r\nKEY bin\r\nEND\r\n"},
	{cases: "show/variables", why: shown, edit: shownEdit},
	{cases: "show/extra", why: shown, edit: shownEdit},
	{cases: "stats/default", why: "#2, #5: of refused requests the original executed parts", edit: []string{
		"cmd_get 84", "cmd_get 77", "get_hits 61", "get_hits 60", "get_misses 22", "get_misses 16", "delete_hits 19", "delete_hits 18"}},
	{cases: "stats/threads", why: "a clock needs no thread; the recording's script had another connection open", edit: []string{
		recordedThread("21", "1", "127.0.0.1:55794", "73"), "", recordedThread("1", "2", ":0", "1795419824"), ""}},
	{cases: "stats/threads-request", why: "likewise", edit: []string{recordedThread("21", "1", "127.0.0.1:55794", "73"), ""}},
	{cases: "stats/settings", why: "an addition", want: "STAT server-name ...\r\nEND\r\n"},
}

// startDeviations are the ways of starting in which this node does something else.
// It tries for as long as it takes, where the original exits: what is wrong may
// pass, and a container would only start it again.
var startDeviations = map[string]string{
	"startup/node-add-refused":       "keeps asking",
	"startup/node-add-bad-line":      "keeps asking",
	"startup/node-add-words-as-role": "keeps asking",
	"startup/meta-error-reply":       "keeps asking",
	"startup/meta-missing-type":      "keeps asking",
	"startup/meta-empty":             "keeps asking",
	"startup/meta-type-only":         "serves", // with the defaults; the original crashes, #33
	"startup/meta-bad-type":          "keeps asking",
	"startup/meta-bad-hash":          "keeps asking",
	"startup/meta-bad-size":          "keeps asking",
}

// syncDeviations are the pushed maps in which it does.
var syncDeviations = deviations{
	{cases: "node-sync/negative-version", why: "versions are not negative: after this one every regular map would be refused", want: "ERROR\r\nERROR\r\nERROR\r\n"},
	{cases: "node-sync/negative-version, version", why: "likewise", want: "STAT node_map_version 5"},
	{cases: "node-sync/unknown-role-9, stats nodes", why: "an unknown code is shown as such", edit: []string{":role \r", ":role role(9)\r"}},
	{cases: "node-sync/unknown-state-9, stats nodes", why: "likewise", edit: []string{":state \r", ":state state(9)\r"}},
}

// peerDeviations is every exchange with other nodes in which this node says something
// else than the original, to a client or to the other node.
var peerDeviations = deviations{
	{cases: "proxied-gat/master-replies ERROR*", why: "the master's word is passed on, as with every other command", want: "ERROR\r\n"},
	{cases: "proxied-gat/master-replies SERVER_ERROR x*", why: "likewise", want: "SERVER_ERROR x\r\n"},
	{cases: "proxied-keys/master-replies SERVER_ERROR x*", why: "#28: keys asks all partitions and says if one did not answer", want: "SERVER_ERROR keys_incomplete: partition 0: NODE: SERVER_ERROR x\r\n"},
	{cases: "flared-C:19123 12-via-proxy-C: keys p 10", why: "#28", want: "SERVER_ERROR keys_incomplete: partition 0: NODE: SERVER_ERROR not available on current storage type\r\n"},
	{cases: "flared-B:19122 12-via-proxy-C: keys p 10", why: "this storage has its keys in order", want: "KEY p1\r\nEND\r\n"},
	{cases: "partition-with-down-preserved-master/on-proxy set k 0 0 1 noreply", why: "#1", want: ""},
}

// sentDeviations is every request to the other cluster that this program sends in
// another form than the original.
var sentDeviations = deviations{
	{cases: "set d3 0 0 1 1 noreply*", why: "#1, #11: every answer is read, and what was not answered is sent again", edit: []string{" noreply", ""}},
	{cases: "set d3 0 0 1 2 sync*", why: "the log has writes, not the options of requests; nobody waits for the other cluster", edit: []string{" sync", ""}},
	{cases: "set g3 0 0 1 noreply*", why: "#1", edit: []string{" noreply", ""}},
	{cases: "<*", why: "#13: the list of this cluster's nodes means nothing there",
		edit: []string{"<127.0.0.1:19132>", "", "<127.0.0.1:1>", ""}},
	{cases: "incr gn 0*", why: "#12", edit: []string{"gn 0", "gn 5"}},
	{cases: "incr nope 0*", why: "#12", edit: []string{"nope 0", "nope 1"}},
	{cases: "decr gn 0*", why: "#12", edit: []string{"gn 0", "gn 2"}},
}

// clusterDeviations is every answer to a client that differs.
var clusterDeviations = deviations{
	{cases: "incr gn 5*12-*", why: "#12", want: "18\r\n"},
	{cases: "incr gn 5*", why: "#12", want: "15\r\n"},
	{cases: "decr gn 2*", why: "#12", want: "13\r\n"},
	{cases: "keys g 10*", why: "this storage has its keys in order", want: "KEY g1\r\nKEY g3\r\nKEY gn\r\nEND\r\n"},
	{cases: "dump_key*09-*", why: "this storage has its keys in order", want: "KEY e2\r\nKEY f1\r\nKEY f2\r\nKEY g1\r\nKEY gn\r\nKEY off\r\nEND\r\n"},
}
