package topology

import (
	"bytes"
	"encoding/binary"
	"hash/adler32"
	"hash/crc32"
	"math/bits"
)

// Hash is one of the key hashes a cluster can be set up with. All nodes of a cluster use the same one, as told by
// the index; it never changes in the life of a cluster.
type Hash uint8

const (
	HashSimple   Hash = iota // sum of the bytes as signed numbers
	HashBitshift             // r*37 + signed byte
	HashCRC32                // CRC-32 (IEEE)
	HashAdler32              // Adler-32
	HashMurmur               // MurmurHash2
	HashJenkins              // lookup3 hashlittle
)

var hashWords = []string{
	HashSimple:   "simple",
	HashBitshift: "bitshift",
	HashCRC32:    "crc32",
	HashAdler32:  "adler32",
	HashMurmur:   "murmur",
	HashJenkins:  "jenkins",
}

// String returns the name used in META lines.
func (h Hash) String() string { return word(hashWords, uint8(h), "hash") }

// ParseHash reads the name used in META lines.
func ParseHash(s string) (Hash, error) {
	n, err := parseWord(hashWords, s, "key hash")
	return Hash(n), err
}

// MarshalText returns the hash's name.
func (h Hash) MarshalText() ([]byte, error) { return marshalWord(hashWords, uint8(h), "key hash") }

// UnmarshalText reads the hash's name.
func (h *Hash) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHash(string(b))
	return err
}

// Sum hashes key up to its first NUL byte. The 32 bit value is read as a signed number and negated when negative,
// so the result is non-negative except for math.MinInt32, which has no positive counterpart.
func (h Hash) Sum(key []byte) int32 {
	if i := bytes.IndexByte(key, 0); i >= 0 {
		key = key[:i]
	}
	var v int32
	switch h {
	case HashBitshift:
		v = bitshift(key)
	case HashCRC32:
		v = int32(crc32.ChecksumIEEE(key))
	case HashAdler32:
		v = int32(adler32.Checksum(key))
	case HashMurmur:
		v = int32(murmur2(key, 0xdeadbeef*uint32(len(key))))
	case HashJenkins:
		v = int32(lookup3(key, 13))
	default:
		for _, b := range key {
			v += int32(int8(b))
		}
	}
	if v < 0 {
		return -v
	}
	return v
}

func bitshift(key []byte) int32 {
	r := uint32(19790217)
	for _, b := range key {
		r = r*37 + uint32(int32(int8(b)))
	}
	return int32(r)
}

// murmur2 is Austin Appleby's MurmurHash2 for 32 bits, reading little endian.
func murmur2(key []byte, seed uint32) uint32 {
	const m = 0x5bd1e995
	h := seed ^ uint32(len(key))
	for len(key) >= 4 {
		k := binary.LittleEndian.Uint32(key) * m
		k = (k ^ k>>24) * m
		h = h*m ^ k
		key = key[4:]
	}
	if len(key) > 0 {
		h = (h ^ tail(key)) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

// lookup3 is Bob Jenkins' hashlittle.
func lookup3(key []byte, initval uint32) uint32 {
	a := 0xdeadbeef + uint32(len(key)) + initval
	b, c := a, a
	for len(key) > 12 {
		a += binary.LittleEndian.Uint32(key)
		b += binary.LittleEndian.Uint32(key[4:])
		c += binary.LittleEndian.Uint32(key[8:])
		a = (a - c) ^ bits.RotateLeft32(c, 4)
		c += b
		b = (b - a) ^ bits.RotateLeft32(a, 6)
		a += c
		c = (c - b) ^ bits.RotateLeft32(b, 8)
		b += a
		a = (a - c) ^ bits.RotateLeft32(c, 16)
		c += b
		b = (b - a) ^ bits.RotateLeft32(a, 19)
		a += c
		c = (c - b) ^ bits.RotateLeft32(b, 4)
		b += a
		key = key[12:]
	}
	if len(key) == 0 {
		return c
	}
	a += tail(key)
	if len(key) > 4 {
		b += tail(key[4:])
	}
	if len(key) > 8 {
		c += tail(key[8:])
	}
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}

// tail reads up to four bytes as a little endian number, missing ones as zero.
func tail(b []byte) uint32 {
	var v uint32
	for i, x := range b[:min(4, len(b))] {
		v |= uint32(x) << (8 * i)
	}
	return v
}
