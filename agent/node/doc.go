// Package node is flared, the storage node: it turns what arrives on its port
// into reads and writes of the one database, or passes it on to the node whose
// business it is.
//
// What is decided is pure and tested by tables: what a request does to a record
// (decide), who executes a request (routeWrite, routeRead), what a node map
// asks of this node (dutyOf) and when it may write (promote). Around that:
//
//	conn        one goroutine per connection; pipelined requests share one wait
//	peers       pipelined connections to the other nodes
//	nodeMap     the map in force; set by the index, read without locks
//	gate        between a write and the database; closed unless this node is
//	            the master of the partition, in an epoch that it has begun
//	            - or, if it copies a node without a log, for what that one executed
//	roleKeeper  level-triggered: makes the node do what the map says
//	slaveCopier copies a master of the original; filler the masters that have the
//	            keys of a partition that is being added
//	relayKeeper sends writes one by one to slaves that cannot read the log, to the
//	            master of a new partition and to another cluster
//	remote      the other cluster, while it answers clients instead of this one
//	indexClient registration, and what a node has to tell the index
//	service     NodeService for the agent, on a Unix-domain socket
//
// A write that cannot be executed now - the master is dead, the promotion is
// not yet in the database, the node is leaving - waits a bounded time for a new
// map and is then routed again, so that a failover is a pause where it can be.
// Never is a request repeated that may have been executed.
package node
