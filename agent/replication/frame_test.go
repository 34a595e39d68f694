package replication

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/flarekv/flare/agent/replication/history"
)

func frames(t testing.TB, list ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for i := 0; i < len(list); i += 2 {
		if err := writeFrame(&b, list[i].(frameType), list[i+1].([]byte)); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), 3*frameChunk/10)
	data := frames(t, frameAlive, []byte(nil), frameFileData, []byte("data"), frameBatch, big)
	r := bufio.NewReader(iotest.HalfReader(bytes.NewReader(data)))
	for _, want := range []struct {
		t frameType
		b []byte
	}{{frameAlive, nil}, {frameFileData, []byte("data")}, {frameBatch, big}} {
		got, payload, err := readFrame(r)
		if err != nil || got != want.t || !bytes.Equal(payload, want.b) {
			t.Fatalf("%v of %d bytes, %v; want %v", got, len(payload), err, want.t)
		}
	}
	if _, _, err := readFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestDamagedFrames(t *testing.T) {
	good := frames(t, frameBatch, []byte("batch"))
	edit := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"type 0":         {edit(4, 0), errBadFrame},
		"unknown type":   {edit(4, byte(frameEnd)), errBadFrame},
		"other type":     {edit(4, byte(frameAck)), errBadFrame},
		"payload":        {edit(frameHeaderSize, 'B'), errBadFrame},
		"checksum":       {edit(5, good[5]+1), errBadFrame},
		"too long":       {edit(0, 0xff), errBadFrame},
		"a bit longer":   {edit(2, 1), errBadFrame}, // told before the rest has come
		"header check":   {edit(9, good[9]+1), errBadFrame},
		"cut in header":  {good[:4], io.ErrUnexpectedEOF},
		"cut in payload": {good[:len(good)-1], io.ErrUnexpectedEOF},
		"no payload":     {good[:frameHeaderSize], io.ErrUnexpectedEOF},
	} {
		if _, _, err := readFrame(bufio.NewReader(bytes.NewReader(tt.data))); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestBuffered(t *testing.T) {
	data := frames(t, frameBatch, []byte("one"), frameBatch, []byte("two"), frameAck, []byte("x"))
	r := bufio.NewReader(bytes.NewReader(data))
	if buffered(r, frameBatch) {
		t.Error("nothing is buffered yet")
	}
	readFrame(r)
	if !buffered(r, frameBatch) || buffered(r, frameAck) {
		t.Error("the second batch is there")
	}
	readFrame(r)
	if buffered(r, frameBatch) || !buffered(r, frameAck) {
		t.Error("an acknowledgement is there")
	}
	half := bufio.NewReader(io.MultiReader(bytes.NewReader(data[:20]), bytes.NewReader(data[20:])))
	readFrame(half)
	if buffered(half, frameBatch) {
		t.Error("only half of a batch is there")
	}
}

func TestPayloads(t *testing.T) {
	check := func(name string, want any, b []byte, decode func([]byte) (any, error)) {
		t.Helper()
		got, err := decode(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
		for n := range b {
			if _, err := decode(b[:n]); !errors.Is(err, errBadFrame) {
				t.Errorf("%s cut at %d: %v", name, n, err)
			}
		}
		if _, err := decode(append(bytes.Clone(b), 0)); !errors.Is(err, errBadFrame) {
			t.Errorf("%s with more: %v", name, err)
		}
	}
	for _, v := range []hello{
		{partition: -1},
		{partition: 7, want: history.TierCheckpoint, lineage: []history.EpochStart{{Epoch: 1, Index: 2}, {Epoch: 3, Index: 4}}},
		{partition: 7, rewind: true, lineage: []history.EpochStart{{Epoch: 1, Index: 2}}},
		{want: history.TierWAL, rewind: true, restored: at(3, 4)},
	} {
		check("hello", v, v.encode(), func(b []byte) (any, error) { return decodeHello(b) })
	}
	for _, st := range []start{
		{tier: history.TierCheckpoint, reason: "purged", lsn: at(1, 2), history: "abc", interval: 500, timeout: 2000},
		{history.TierRewind, "diverged_tail", at(1, 2), "abc", 500, 2000, at(3, 4)},
	} {
		check("start", st, st.encode(), func(b []byte) (any, error) { return decodeStart(b) })
	}
	for _, k := range []keys{{}, {last: true}, {true, []history.Key{{Family: 2, Key: "k"}, {}}}} {
		check("keys", k, k.encode(), func(b []byte) (any, error) { return decodeKeys(b) })
	}
	for _, v := range []values{{at: at(1, 2)}, {at(1, 2), []history.Value{{}, {Found: true, Data: []byte("v")}, {Found: true, Data: []byte{}}}}} {
		check("values", v, v.encode(), func(b []byte) (any, error) { return decodeValues(b) })
	}
	hb := heartbeat{at(3, 4), -5}
	check("heartbeat", hb, hb.encode(), func(b []byte) (any, error) { return decodeHeartbeat(b) })
	is := inSync{1, 1 << 60}
	check("in sync", is, is.encode(), func(b []byte) (any, error) { return decodeInSync(b) })
	cb := checkpointBegin{"id", at(1, 2), []history.File{{Name: "a", Size: 3}, {Name: "b"}}}
	check("checkpoint", cb, cb.encode(), func(b []byte) (any, error) { return decodeCheckpointBegin(b) })
	hv := []filePart{{"a", 1 << 40, 7}, {"b", 0, 0}}
	check("have", hv, encodeHave(hv), func(b []byte) (any, error) { return decodeHave(b) })
	nt := notice{"waiting", 3}
	check("notice", nt, nt.encode(), func(b []byte) (any, error) { return decodeNotice(b) })
	fb := fileBegin{"000012.sst", 1 << 40, 1 << 39}
	check("file", fb, fb.encode(), func(b []byte) (any, error) { return decodeFileBegin(b) })
	check("lacking", []uint64{1, 1 << 40}, encodeLacking([]uint64{1, 1 << 40}), func(b []byte) (any, error) { return decodeLacking(b) })
	rf := refusal{"reason", "words"}
	check("refusal", rf, rf.encode(), func(b []byte) (any, error) { return decodeRefusal(b) })
	check("position", at(8, 9), appendLSN(nil, at(8, 9)), func(b []byte) (any, error) { return decodeLSN(frameAck, b) })
	check("string", "text", appendString(nil, "text"), func(b []byte) (any, error) { return decodeString(frameResume, b) })
	la, lk := leaseAsk{3, 4, 5000}, leaseAck{3, 4, true}
	check("lease ask", la, la.encode(), func(b []byte) (any, error) { return decodeLeaseAsk(b) })
	check("lease ack", lk, lk.encode(), func(b []byte) (any, error) { return decodeLeaseAck(b) })
	check("number", uint32(7), binary.BigEndian.AppendUint32(nil, 7), func(b []byte) (any, error) { return decodeU32(frameFileEnd, b) })
	for name, b := range map[string][]byte{
		"a lineage that cannot be":   {0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"a bit that nobody knows":    {0, 0, 0, 0, 64, 0, 0, 0, 0},
		"restored as of no position": append([]byte{0, 0, 0, 0, helloRestored, 0, 0, 0, 0}, make([]byte, 16)...),
	} {
		if _, err := decodeHello(b); !errors.Is(err, errBadFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeKeys([]byte{2, 0, 0, 0, 0}); !errors.Is(err, errBadFrame) {
		t.Errorf("neither last nor not: %v", err)
	}
	if _, err := decodeKeys([]byte{0, 0xff, 0xff, 0xff, 0xff}); !errors.Is(err, errBadFrame) {
		t.Errorf("more keys than can be: %v", err)
	}
	if _, err := decodeValues(append(appendLSN(nil, at(1, 2)), 0, 0, 0, 1, 7)); !errors.Is(err, errBadFrame) {
		t.Errorf("neither found nor not: %v", err)
	}
}

func TestFrameNames(t *testing.T) {
	for ft := frameHello; ft < frameEnd; ft++ {
		if s := ft.String(); s == "" || strings.HasPrefix(s, "frame type") {
			t.Errorf("frame type %d has no name", ft)
		}
	}
	if s := frameEnd.String(); s != fmt.Sprintf("frame type %d", frameEnd) {
		t.Error(s)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frames(f, frameHello, hello{lineage: []history.EpochStart{{}}}.encode(), frameStart, start{}.encode()))
	f.Add(frames(f, frameCheckpointBegin, checkpointBegin{files: []history.File{{Name: "x", Size: 1}}}.encode(), frameFileBegin, fileBegin{"x", 1, 0}.encode()))
	f.Add(frames(f, frameKeys, keys{true, []history.Key{{Key: "k"}}}.encode(), frameValues, values{at(1, 2), []history.Value{{Found: true, Data: []byte("v")}}}.encode()))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			_, b, err := readFrame(r)
			if err != nil {
				return
			}
			decodeHello(b)
			decodeStart(b)
			decodeHeartbeat(b)
			decodeInSync(b)
			decodeCheckpointBegin(b)
			decodeFileBegin(b)
			decodeRefusal(b)
			decodeLacking(b)
			decodeHave(b)
			decodeNotice(b)
			decodeKeys(b)
			decodeValues(b)
		}
	})
}

// FuzzFramePayload decodes payloads of any content: what is accepted means the same
// when it is written again.
func FuzzFramePayload(f *testing.F) {
	f.Add(byte(frameHello), hello{partition: -1, lineage: []history.EpochStart{{Epoch: 1, Index: 2}}}.encode())
	f.Add(byte(frameStart), start{tier: history.TierWAL, reason: "r", history: "h", interval: 1, timeout: 2}.encode())
	f.Add(byte(frameHeartbeat), heartbeat{at: 5}.encode())
	f.Add(byte(frameInSync), inSync{1, 2}.encode())
	f.Add(byte(frameCheckpointBegin), checkpointBegin{files: []history.File{{Name: "x", Size: 1}}}.encode())
	f.Add(byte(frameFileBegin), fileBegin{"x", 1, 0}.encode())
	f.Add(byte(frameError), refusal{"r", "m"}.encode())
	f.Add(byte(frameHave), encodeHave([]filePart{{"a", 1, 2}}))
	f.Add(byte(frameLacking), encodeLacking([]uint64{1}))
	f.Add(byte(frameHello), hello{rewind: true, restored: at(1, 2)}.encode())
	f.Add(byte(frameStart), start{tier: history.TierRewind, fork: at(1, 2)}.encode())
	f.Add(byte(frameKeys), keys{last: true, keys: []history.Key{{Family: 2, Key: "k"}, {Key: "l"}}}.encode())
	f.Add(byte(frameValues), values{at(1, 2), []history.Value{{}, {Found: true, Data: []byte("v")}}}.encode())
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		ft := frameType(kind)
		if ft == 0 || ft >= frameEnd {
			return
		}
		var wire bytes.Buffer
		if err := writeFrame(&wire, ft, payload); err != nil {
			t.Fatal(err)
		}
		got, b, err := readFrame(bufio.NewReader(&wire))
		if err != nil || got != ft || !bytes.Equal(b, payload) {
			t.Fatalf("%v of %d bytes is read as %v of %d, %v", ft, len(payload), got, len(b), err)
		}
		var again []byte
		switch ft {
		case frameHello:
			var v hello
			v, err = decodeHello(b)
			again = v.encode()
		case frameStart:
			var v start
			v, err = decodeStart(b)
			again = v.encode()
		case frameHeartbeat:
			var v heartbeat
			v, err = decodeHeartbeat(b)
			again = v.encode()
		case frameInSync:
			var v inSync
			v, err = decodeInSync(b)
			again = v.encode()
		case frameCheckpointBegin:
			var v checkpointBegin
			v, err = decodeCheckpointBegin(b)
			again = v.encode()
		case frameFileBegin:
			var v fileBegin
			v, err = decodeFileBegin(b)
			again = v.encode()
		case frameHave:
			var v []filePart
			v, err = decodeHave(b)
			again = encodeHave(v)
		case frameLacking:
			var v []uint64
			v, err = decodeLacking(b)
			again = encodeLacking(v)
		case frameNotice:
			var v notice
			v, err = decodeNotice(b)
			again = v.encode()
		case frameError:
			var v refusal
			v, err = decodeRefusal(b)
			again = v.encode()
		case frameKeys:
			var v keys
			v, err = decodeKeys(b)
			again = v.encode()
		case frameValues:
			var v values
			v, err = decodeValues(b)
			again = v.encode()
		default:
			return
		}
		if err == nil && !bytes.Equal(again, b) {
			t.Errorf("%v %x is written again as %x", ft, b, again)
		}
		if err != nil && !errors.Is(err, errBadFrame) {
			t.Errorf("%v: %v", ft, err)
		}
	})
}
