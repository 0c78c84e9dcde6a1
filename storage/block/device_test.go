package block_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/block"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newDevice(t interface{ Fatal(...any) }, layers []storage.Mapper) *block.Device {
	d, err := block.New(layers, block.Options{Check: true, UnpackedCache: 3 * unitSize})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Whatever the chain looks like, every way to read it gives the model's bytes.
func TestReadsAgreeWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		d := newDevice(t, m.layers)
		ctx := context.Background()
		for range 8 {
			off := rapid.Int64Range(0, d.Size()).Draw(t, "off")
			n := rapid.Int64Range(0, d.Size()-off).Draw(t, "n")
			want := m.bytes[off : off+n]
			p := make([]byte, n)
			if err := d.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, want) {
				t.Fatalf("ReadAt(%d, %d): %v, equal %v", off, n, err, bytes.Equal(p, want))
			}
			for name, read := range map[string]func(*block.Stream) ([]byte, error){
				"Read": func(s *block.Stream) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{s}) },
				"WriteTo": func(s *block.Stream) ([]byte, error) {
					var b bytes.Buffer
					_, err := s.WriteTo(&b)
					return b.Bytes(), err
				},
				"mixed": readMixed,
			} {
				s, err := d.Stream(ctx, off, n)
				if err != nil {
					t.Fatal(err)
				}
				got, err := read(s)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s of %d at %d: %v, equal %v", name, n, off, err, bytes.Equal(got, want))
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// readMixed reads 512 bytes and then pieces, as an HTTP response does.
func readMixed(s *block.Stream) ([]byte, error) {
	got, err := io.ReadAll(io.LimitReader(s, 512))
	for err == nil {
		var p block.Piece
		p, err = s.Next()
		got = append(got, p.Data...)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got, err
}

// The resolved map says of every byte which layer supplies it, and where it
// says zero the byte is zero.
func TestWalkAgreesWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		d := newDevice(t, m.layers)
		off := rapid.Int64Range(0, d.Size()-1).Draw(t, "off")
		n := rapid.Int64Range(1, d.Size()-off).Draw(t, "n")
		volunteer := rapid.Bool().Draw(t, "volunteer")
		start, at := off, int64(-1)
		var last storage.Mapping
		for mp, err := range d.Walk(context.Background(), off, n, block.WalkOptions{Volunteer: volunteer}) {
			if err != nil {
				t.Fatal(err)
			}
			if at < 0 {
				start, at = mp.Offset, mp.Offset
			}
			if mp.Offset != at || mp.Length <= 0 {
				t.Fatalf("extent at %d, expected %d", mp.Offset, at)
			}
			if at > start && last.Continues(&mp) {
				t.Fatalf("extents at %d and %d say the same", last.Offset, mp.Offset)
			}
			checkExtent(t, m, &mp)
			last, at = mp, mp.End()
		}
		if !volunteer && (start != off || at != off+n) || start > off || at < off+n {
			t.Fatalf("walk of %d at %d gave %d to %d", n, off, start, at)
		}
	})
}

func checkExtent(t *rapid.T, m *model, mp *storage.Mapping) {
	for i := mp.Offset; i < mp.End(); i++ {
		local := mp.Status.Has(storage.Local)
		if local && mp.Depth != m.depth[i] {
			t.Fatalf("byte %d is said to be of layer %d, it is of %d", i, mp.Depth, m.depth[i])
		}
		if mp.Status.Has(storage.Zero) != (m.bytes[i] == 0) && mp.Flags&storage.Compressed == 0 {
			t.Fatalf("byte %d is %#x, and the map says %v", i, m.bytes[i], mp.Status)
		}
	}
}

func TestBoundsAreChecked(t *testing.T) {
	d := newDevice(t, []storage.Mapper{&tableMapper{size: 8192, mappings: []storage.Mapping{{Length: 8192}}}})
	ctx := context.Background()
	for _, r := range [][2]int64{{0, 8193}, {8192, 1}, {8193, 0}, {-1, 1}, {1 << 62, 1 << 62}, {4096, 1<<63 - 1}} {
		if _, err := d.Stream(ctx, r[0], r[1]); !errors.Is(err, storage.ErrOutOfRange) {
			t.Errorf("stream of %v: %v", r, err)
		}
		for _, err := range d.Walk(ctx, r[0], r[1], block.WalkOptions{}) {
			if !errors.Is(err, storage.ErrOutOfRange) {
				t.Errorf("walk of %v: %v", r, err)
			}
		}
	}
	p := make([]byte, 2)
	if err := d.ReadAt(ctx, p, 8191); !errors.Is(err, storage.ErrOutOfRange) {
		t.Error(err)
	}
}

// limited is a layer with a preferred size.
type limited struct{ *tableMapper }

func (limited) Limit(_ context.Context, which storage.Limit) (int64, error) {
	if which == storage.Preferred {
		return 1 << 20, nil
	}
	return 0, nil
}

// The limits are those of the top layer and of the nodes, whichever is stricter,
// also where every fetch is checked.
func TestLimits(t *testing.T) {
	table := &tableMapper{size: 8192, mappings: []storage.Mapping{{Length: 8192}}}
	strict := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 8192, Limits: storage.Limits{Minimum: 4096, MaxData: 8 << 20}})
	d, err := block.New([]storage.Mapper{limited{table}}, block.Options{
		Check: true, Nodes: []*storage.Node{storage.NewNode("strict", strict, storage.NodeOptions{})},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.Limits(context.Background())
	if err != nil || l.Minimum != 4096 || l.Preferred != 1<<20 || l.MaxData != 8<<20 {
		t.Errorf("limits %+v, %v", l, err)
	}
	if err := d.ReadAt(context.Background(), make([]byte, 512), 4096); !errors.Is(err, storage.ErrMisaligned) {
		t.Errorf("a read of 512 bytes: %v", err)
	}
}

// A layer is asked once for what it volunteers, however the layers alternate.
func TestFetchesAreShared(t *testing.T) {
	const blocks = 1024
	data := make([]byte, blocks*unitSize)
	top, base := alternating(data, 0), alternating(data, 1)
	d := newDevice(t, []storage.Mapper{top, base})
	n := 0
	for _, err := range d.Walk(context.Background(), 0, d.Size(), block.WalkOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if most := int64(blocks / 8); n != blocks || top.fetches.Load() > most || base.fetches.Load() > most {
		t.Errorf("%d extents with %d and %d fetches", n, top.fetches.Load(), base.fetches.Load())
	}
}

func TestCanceledStreamEnds(t *testing.T) {
	data := bytes.Repeat([]byte{5}, 1024*unitSize)
	for name, status := range map[string]storage.Flags{"plain": 0, "compressed": storage.Compressed} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			d := newDevice(t, []storage.Mapper{uniform(data, status)})
			s, err := d.Stream(ctx, 0, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			cancel()
			if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
				t.Errorf("copy after cancel: %v", err)
			}
		})
	}
}
