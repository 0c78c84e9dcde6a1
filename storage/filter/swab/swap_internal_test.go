package swab

import "testing"

func BenchmarkSwap(b *testing.B) {
	p := make([]byte, 64<<10)
	for _, c := range []struct {
		name string
		swap func(dst, src []byte)
	}{{"16", swap16}, {"32", swap32}, {"64", swap64}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				c.swap(p, p)
			}
		})
	}
}
