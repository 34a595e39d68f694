// Package relay plays a node's log to a node that cannot read it: a C++ flared,
// or one of another cluster or partition. What the log holds as batches goes out
// as single operations of the text protocol, each with the version of its record.
//
// The log is the queue. Nothing is added to a client's write, and nothing waits
// in memory but the operations under way: a Relay remembers up to which position
// its peer has acknowledged everything, and has the database keep the log from
// there. When the connection is lost it goes on from that position. Operations
// that the peer has seen already do no harm, because it compares versions; where
// it does not, for a touch, the relay does.
//
// The log that is kept for a peer is bounded. Beyond the bound it is given up,
// which is counted, and the relay starts over: it sends all records anew. It does
// so beside the log, a step of the scan at a time, from a position taken before
// the first step. A step holds what the records were when it was read, which is
// not before the position that was played by then; whatever happened to one of
// them later is in the log behind that position and is played after the step.
//
//	window  operations that are sent together: the last of each key counts
//	lane    a connection; the operations of a key always use the same one
//	Relay   reads the log, sends windows, keeps the position
package relay
