package topology

import (
	"crypto/sha256"
	"encoding/binary"
)

// A Digest sums up records in whatever order they come: two sets of records have the
// same digest if, and in all likelihood only if, they are the same. Digests of parts
// of a set add up to that of the whole.
type Digest struct {
	Records  uint64
	Bytes    uint64 // of keys and values
	Checksum uint64 // sum of the records' hashes
}

// Plus returns the digest of both sets.
func (d Digest) Plus(o Digest) Digest {
	return Digest{d.Records + o.Records, d.Bytes + o.Bytes, d.Checksum + o.Checksum}
}

// A Digester makes digests of single records. It belongs to one goroutine.
type Digester struct{ buf []byte }

// Record returns the digest of a record, and a number by which records can be dealt
// out evenly: the same key has the same one wherever it is.
func (g *Digester) Record(key []byte, flags uint32, expire int64, version uint64, value []byte) (d Digest, spread uint32) {
	// Each part has a length of its own or comes with it, so that no two records are
	// written alike.
	b := binary.BigEndian.AppendUint32(g.buf[:0], uint32(len(key)))
	b = append(b, key...)
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(expire))
	b = binary.BigEndian.AppendUint64(b, version)
	b = append(b, value...)
	g.buf = b
	of, whole := sha256.Sum256(b[:at]), sha256.Sum256(b)
	return Digest{1, uint64(len(key) + len(value)), binary.BigEndian.Uint64(whole[:])}, binary.BigEndian.Uint32(of[:])
}
