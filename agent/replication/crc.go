package replication

import "hash/crc32"

// A frame and a file have a checksum each, of the same bytes when a file is copied.
// That of the file follows from those of its frames, which spares both sides to read
// everything twice.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func frameCRC(t frameType, payload []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, []byte{byte(t)}), castagnoli, payload)
}

// fileCRC returns the CRC-32C of what has the checksum crc followed by the payload, of
// n bytes, of a frame of type t whose checksum is frame.
func fileCRC(crc uint32, t frameType, frame uint32, n int) uint32 {
	return shiftCRC(crc^frameCRC(t, nil), n) ^ frame
}

// shiftCRC returns what a checksum contributes to that of a message in which n more
// bytes follow: it is a polynomial over GF(2), multiplied by x to the power of 8n.
func shiftCRC(crc uint32, n int) uint32 {
	for power := uint32(1) << (31 - 8); n > 0; n >>= 1 { // x^8, bit 31 is that of x^0
		if n&1 != 0 {
			crc = mulCRC(crc, power)
		}
		power = mulCRC(power, power)
	}
	return crc
}

// mulCRC multiplies two polynomials modulo Castagnoli's.
func mulCRC(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		product ^= b & -(a >> 31)
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
