package replication

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/flarekv/flare/agent/replication/history"
	"github.com/flarekv/flare/proto/topology"
)

// A frame is a 13 byte header (payload length u32, type u8, CRC-32C of type and
// payload u32, CRC-32C of these 9 bytes u32) and a payload. The header has a checksum
// of its own because a length that is wrong would have a reader wait for a payload
// that never ends, with a peer that is obviously alive. All numbers are big endian; strings and lists have
// a u32 length or count before them.

type frameType uint8

const (
	frameHello           frameType = 1 + iota // hello, once, first
	frameStart                                // start, once, first
	frameBatch                                // the raw batch
	frameHeartbeat                            // heartbeat
	frameAck                                  // epoch, index
	frameAlive                                // empty
	frameInSync                               // epoch, session
	frameCheckpointBegin                      // checkpointBegin
	frameFileBegin                            // fileBegin
	frameFileData                             // raw bytes
	frameFileEnd                              // CRC-32C of the file u32
	frameCheckpointDone                       // empty
	frameNotice                               // notice: what the replica has to wait for
	frameError                                // refusal, from either side; the connection ends
	frameLacking                              // indexes, ascending: who may come for the log lacks it from there on
	frameResume                               // string: the checkpoint whose copy was interrupted, "" for none
	frameHave                                 // parts of the announced files that are there
	frameKeys                                 // keys
	frameValues                               // values
	frameLeaseAsk                             // leaseAsk
	frameLeaseAck                             // leaseAck
	frameEnd
)

var frameNames = [frameEnd]string{"", "HELLO", "START", "BATCH", "HEARTBEAT", "ACK", "ALIVE", "IN_SYNC",
	"CHECKPOINT_BEGIN", "FILE_BEGIN", "FILE_DATA", "FILE_END", "CHECKPOINT_DONE", "NOTICE", "ERROR", "LACKING",
	"RESUME", "HAVE", "KEYS", "VALUES", "LEASE_ASK", "LEASE_ACK"}

func (t frameType) String() string {
	if t == 0 || t >= frameEnd {
		return fmt.Sprintf("frame type %d", uint8(t))
	}
	return frameNames[t]
}

const (
	frameHeaderSize = 13
	// maxFrame bounds every payload; a batch is about as large as the largest value.
	maxFrame = 1<<30 + 1<<20
	// frameChunk is how much memory a length is trusted for before its bytes arrive.
	frameChunk = 1 << 20
)

// maxPayload bounds the payload of a frame, before any of it is read.
func maxPayload(t frameType) int {
	switch t {
	case frameBatch, frameValues:
		return maxFrame
	case frameHello, frameLacking, frameFileData, frameKeys:
		return 1 << 20
	case frameCheckpointBegin, frameHave:
		return 64 << 20
	}
	return 64 << 10
}

var errBadFrame = errors.New("damaged frame")

// putHeader writes the header of a frame, and returns the checksum of the frame.
func putHeader(h []byte, t frameType, payload []byte) (crc uint32, err error) {
	if most := maxPayload(t); len(payload) > most {
		return 0, fmt.Errorf("%v of %d bytes, want at most %d", t, len(payload), most)
	}
	binary.BigEndian.PutUint32(h, uint32(len(payload)))
	h[4] = byte(t)
	crc = frameCRC(t, payload)
	binary.BigEndian.PutUint32(h[5:], crc)
	binary.BigEndian.PutUint32(h[9:], crc32.Checksum(h[:9], castagnoli))
	return crc, nil
}

// writeFrame writes a frame. It needs no lock only if there is one writer.
func writeFrame(w io.Writer, t frameType, payload []byte) error {
	var h [frameHeaderSize]byte
	if _, err := putHeader(h[:], t, payload); err != nil {
		return err
	}
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

// readFrame reads a frame. The payload is the caller's.
func readFrame(r *bufio.Reader) (frameType, []byte, error) {
	t, payload, _, err := readFrameTo(r, nil)
	return t, payload, err
}

// readFrameTo reads a frame, its payload into memory that the caller has, if that is
// enough. It returns the frame's checksum, too, which it has verified.
func readFrameTo(r *bufio.Reader, memory []byte) (t frameType, payload []byte, crc uint32, err error) {
	var h [frameHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, 0, err
	}
	n := int(binary.BigEndian.Uint32(h[:]))
	t = frameType(h[4])
	if binary.BigEndian.Uint32(h[9:]) != crc32.Checksum(h[:9], castagnoli) {
		return 0, nil, 0, refuse(refusedChecksum, "%w: checksum of a header", errBadFrame)
	}
	if t == 0 || t >= frameEnd {
		return 0, nil, 0, refuse(refusedUnknown, "%w: unknown type %d", errBadFrame, h[4])
	}
	if most := maxPayload(t); n > most {
		return 0, nil, 0, refuse(refusedOversize, "%w: %v of %d bytes, want at most %d", errBadFrame, t, n, most)
	}
	payload = memory[:0]
	if n <= cap(memory) {
		payload = memory[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return 0, nil, 0, noEOF(err)
		}
	}
	for len(payload) < n {
		// The length is trusted only as far as bytes have arrived.
		had := len(payload)
		payload = append(payload, make([]byte, min(n-had, max(frameChunk, had)))...)
		if _, err := io.ReadFull(r, payload[had:]); err != nil {
			return 0, nil, 0, noEOF(err)
		}
	}
	if crc = binary.BigEndian.Uint32(h[5:]); crc != frameCRC(t, payload) {
		return 0, nil, 0, refuse(refusedChecksum, "%w: checksum of %v", errBadFrame, t)
	}
	return t, payload, crc, nil
}

// unexpected refuses a frame that does not come at this point.
func unexpected(t frameType) error {
	return refuse(refusedUnexpected, "%w: unexpected %v", errBadFrame, t)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// buffered reports whether the next frame is a whole one of the type that can
// be read without waiting.
func buffered(r *bufio.Reader, t frameType) bool {
	if r.Buffered() < frameHeaderSize {
		return false
	}
	h, err := r.Peek(frameHeaderSize)
	return err == nil && frameType(h[4]) == t && r.Buffered()-frameHeaderSize >= int(binary.BigEndian.Uint32(h))
}

// hello is what a replica tells of itself beyond the upgrade line.
type hello struct {
	partition int32        // whose data it holds, -1 for unknown
	want      history.Tier // that it insists on, TierNone for none
	rewind    bool         // it can undo a tail of its own
	lineage   []history.EpochStart
	restored  topology.LSN // history.Position.Restored; on the wire only if it is not zero
}

// wanted are the tiers that a replica may insist on, by their number in HELLO.
var wanted = [...]history.Tier{history.TierNone, history.TierCheckpoint, history.TierWAL, history.TierRewind}

// Bits of HELLO's byte above the number of the wanted tier.
const (
	helloWanted   = 1<<4 - 1
	helloRewind   = 1 << 4
	helloRestored = 1 << 5
)

// start is the master's answer.
type start struct {
	tier     history.Tier
	reason   string
	lsn      topology.LSN // master's
	history  string
	interval uint32       // milliseconds between signs of life
	timeout  uint32       // milliseconds of silence that end the connection
	fork     topology.LSN // last position that stays; on the wire only with TierRewind
}

type heartbeat struct {
	lsn topology.LSN
	at  int64 // unix nanoseconds by the master's clock
}

type inSync struct{ epoch, session uint64 }

type checkpointBegin struct {
	id    string
	lsn   topology.LSN
	files []history.File
}

type fileBegin struct {
	name   string
	size   uint64
	offset uint64 // where the data begin: what is before it the replica has
}

type notice struct {
	reason   string
	position uint32 // place in the queue, from 1
}

type refusal struct{ reason, message string }

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

func appendLSN(dst []byte, l topology.LSN) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, l.Epoch), l.Index)
}

func (h hello) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(h.partition))
	bits := byte(max(slices.Index(wanted[:], h.want), 0))
	if h.rewind {
		bits |= helloRewind
	}
	if !h.restored.IsZero() {
		bits |= helloRestored
	}
	b = append(b, bits)
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.lineage)))
	for _, s := range h.lineage {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, s.Epoch), s.Index)
	}
	if !h.restored.IsZero() {
		b = appendLSN(b, h.restored)
	}
	return b
}

func (s start) encode() []byte {
	b := append([]byte(nil), byte(s.tier))
	b = appendString(b, s.reason)
	b = appendLSN(b, s.lsn)
	b = appendString(b, s.history)
	b = binary.BigEndian.AppendUint32(b, s.interval)
	b = binary.BigEndian.AppendUint32(b, s.timeout)
	if s.tier == history.TierRewind {
		b = appendLSN(b, s.fork)
	}
	return b
}

func (h heartbeat) encode() []byte {
	return binary.BigEndian.AppendUint64(appendLSN(nil, h.lsn), uint64(h.at))
}

func (s inSync) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s.epoch), s.session)
}

func (c checkpointBegin) encode() []byte {
	b := appendLSN(appendString(nil, c.id), c.lsn)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.files)))
	for _, f := range c.files {
		b = binary.BigEndian.AppendUint64(appendString(b, f.Name), uint64(f.Size))
	}
	return b
}

func (f fileBegin) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(appendString(nil, f.name), f.size), f.offset)
}

func (n notice) encode() []byte {
	return binary.BigEndian.AppendUint32(appendString(nil, n.reason), n.position)
}

func encodeHave(parts []filePart) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(parts)))
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(appendString(b, p.name), p.size), p.crc)
	}
	return b
}

func (r refusal) encode() []byte { return appendString(appendString(nil, r.reason), r.message) }

func encodeLacking(indexes []uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(indexes)))
	for _, index := range indexes {
		b = binary.BigEndian.AppendUint64(b, index)
	}
	return b
}

// decoder reads the fields of a payload. After the last one end tells whether
// all were there.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.rest) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) lsn() topology.LSN { return topology.LSN{Epoch: d.u64(), Index: d.u64()} }

func (d *decoder) string() string { return string(d.take(int(d.u32()))) }

// count reads the length of a list whose elements have so many bytes at least.
func (d *decoder) count(size int) int {
	n := int(d.u32())
	if n < 0 || n > len(d.rest)/size {
		d.bad = true
		return 0
	}
	return n
}

func (d *decoder) end(t frameType) error {
	if d.bad || len(d.rest) > 0 {
		return refuse(refusedFields, "%w: fields of %v", errBadFrame, t)
	}
	return nil
}

func decodeHello(b []byte) (hello, error) {
	d := decoder{rest: b}
	h := hello{partition: int32(d.u32())}
	bits := d.u8()
	want := bits & helloWanted
	if int(want) >= len(wanted) {
		return hello{}, refuse(refusedFields, "%w: %v wants tier number %d", errBadFrame, frameHello, want)
	}
	h.want, h.rewind = wanted[want], bits&helloRewind != 0
	n := int(d.u32())
	if n < 0 || n > len(d.rest)/16 {
		return hello{}, refuse(refusedFields, "%w: lineage of %v", errBadFrame, frameHello)
	}
	for range n {
		h.lineage = append(h.lineage, history.EpochStart{Epoch: d.u64(), Index: d.u64()})
	}
	if bits&helloRestored != 0 {
		h.restored = d.lsn()
	}
	if bits&^(helloWanted|helloRewind|helloRestored) != 0 || (bits&helloRestored != 0) == h.restored.IsZero() {
		d.bad = true
	}
	return h, d.end(frameHello)
}

func decodeStart(b []byte) (start, error) {
	d := decoder{rest: b}
	s := start{tier: history.Tier(d.u8()), reason: d.string(), lsn: d.lsn(), history: d.string(), interval: d.u32(), timeout: d.u32()}
	if s.tier == history.TierRewind {
		s.fork = d.lsn()
	}
	return s, d.end(frameStart)
}

func decodeHeartbeat(b []byte) (heartbeat, error) {
	d := decoder{rest: b}
	h := heartbeat{lsn: d.lsn(), at: int64(d.u64())}
	return h, d.end(frameHeartbeat)
}

func decodeLSN(t frameType, b []byte) (topology.LSN, error) {
	d := decoder{rest: b}
	l := d.lsn()
	return l, d.end(t)
}

func decodeInSync(b []byte) (inSync, error) {
	d := decoder{rest: b}
	s := inSync{epoch: d.u64(), session: d.u64()}
	return s, d.end(frameInSync)
}

func decodeCheckpointBegin(b []byte) (checkpointBegin, error) {
	d := decoder{rest: b}
	c := checkpointBegin{id: d.string(), lsn: d.lsn()}
	for n := d.count(12); n > 0; n-- {
		c.files = append(c.files, history.File{Name: d.string(), Size: int64(d.u64())})
	}
	return c, d.end(frameCheckpointBegin)
}

func decodeFileBegin(b []byte) (fileBegin, error) {
	d := decoder{rest: b}
	f := fileBegin{name: d.string(), size: d.u64(), offset: d.u64()}
	if f.offset > f.size {
		d.bad = true
	}
	return f, d.end(frameFileBegin)
}

func decodeNotice(b []byte) (notice, error) {
	d := decoder{rest: b}
	n := notice{reason: d.string(), position: d.u32()}
	return n, d.end(frameNotice)
}

func decodeHave(b []byte) ([]filePart, error) {
	d := decoder{rest: b}
	var list []filePart
	for n := d.count(16); n > 0; n-- {
		list = append(list, filePart{name: d.string(), size: d.u64(), crc: d.u32()})
	}
	return list, d.end(frameHave)
}

func decodeLacking(b []byte) ([]uint64, error) {
	d := decoder{rest: b}
	var list []uint64
	for n := d.count(8); n > 0; n-- {
		list = append(list, d.u64())
	}
	return list, d.end(frameLacking)
}

func decodeString(t frameType, b []byte) (string, error) {
	d := decoder{rest: b}
	s := d.string()
	return s, d.end(t)
}

func decodeU32(t frameType, b []byte) (uint32, error) {
	d := decoder{rest: b}
	n := d.u32()
	return n, d.end(t)
}

func decodeRefusal(b []byte) (refusal, error) {
	d := decoder{rest: b}
	r := refusal{reason: d.string(), message: d.string()}
	return r, d.end(frameError)
}
