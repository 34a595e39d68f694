package replication

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

func TestFileCRC(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{7})
	var whole []byte
	crc := uint32(0)
	for _, n := range []int{0, 1, 2, 3, 8, 13, 255, 4096, 65537, maxChunk, 5, 0, maxChunk - 1} {
		payload := make([]byte, n)
		rng.Read(payload)
		whole = append(whole, payload...)
		crc = fileCRC(crc, frameFileData, frameCRC(frameFileData, payload), n)
		if want := crc32.Checksum(whole, castagnoli); crc != want {
			t.Fatalf("after %d bytes %08x, want %08x", len(whole), crc, want)
		}
	}
}

func BenchmarkFileCRC(b *testing.B) {
	payload := make([]byte, maxChunk)
	frame := frameCRC(frameFileData, payload)
	b.Run("combined", func(b *testing.B) {
		b.SetBytes(maxChunk)
		for i := range b.N {
			fileCRC(uint32(i), frameFileData, frame, maxChunk)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(maxChunk)
		for i := range b.N {
			crc32.Update(uint32(i), castagnoli, payload)
		}
	})
}
