package topology

import "testing"

func TestDigestTellsRecordsApart(t *testing.T) {
	var g Digester
	of := func(key string, flags uint32, expire int64, version uint64, value string) Digest {
		d, _ := g.Record([]byte(key), flags, expire, version, []byte(value))
		return d
	}
	base := of("key", 1, 2, 3, "value")
	if base.Records != 1 || base.Bytes != 8 || base != of("key", 1, 2, 3, "value") {
		t.Errorf("digest %+v", base)
	}
	for i, other := range []Digest{
		of("kez", 1, 2, 3, "value"), of("key", 2, 2, 3, "value"), of("key", 1, 3, 3, "value"),
		of("key", 1, 2, 4, "value"), of("key", 1, 2, 3, "valuf"), of("keyv", 1, 2, 3, "alue"),
	} {
		if other.Checksum == base.Checksum {
			t.Errorf("record %d has the same checksum", i)
		}
	}
	a, b := of("a", 0, 0, 1, "1"), of("b", 0, 0, 1, "2")
	if a.Plus(b) != b.Plus(a) || a.Plus(b).Records != 2 || a.Plus(b) == of("a", 0, 0, 1, "2").Plus(of("b", 0, 0, 1, "1")) {
		t.Errorf("sums of %+v and %+v", a, b)
	}
	_, s1 := g.Record([]byte("key"), 1, 2, 3, []byte("value"))
	_, s2 := g.Record([]byte("key"), 0, 0, 9, nil)
	if s1 != s2 {
		t.Errorf("the place of a key depends on its record: %d, %d", s1, s2)
	}
}
