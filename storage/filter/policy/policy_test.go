package policy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/extentd/extentd/storage"
	"github.com/extentd/extentd/storage/filter/policy"
	"github.com/extentd/extentd/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func below(l storage.Limits) *storage.Node {
	return storage.NewNode("below", storagetest.NewMemFileWith(storagetest.MemOptions{Limits: l}), storage.NodeOptions{Check: true})
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		mode    policy.Mode
		minimum int64
	}{{"", 1}, {policy.Enforce, 4096}, {policy.Allow, 512}} {
		open := func(t *testing.T, f storage.File) storage.File {
			p, err := policy.New(t.Context(), storage.NewNode("below", f, storage.NodeOptions{Check: true}),
				policy.Options{Mode: c.mode, Limits: storage.Limits{Minimum: c.minimum}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		t.Run(fmt.Sprintf("%s minimum %d", c.mode, c.minimum), func(t *testing.T) {
			t.Parallel()
			storagetest.TestFile(t, c.minimum, func(t *testing.T, content []byte, holes ...storagetest.Range) storage.File {
				return open(t, storagetest.NewMemFile(content, holes...))
			})
			storagetest.TestWriter(t, c.minimum, func(t *testing.T, size int64) storage.File {
				return open(t, storagetest.NewMemFileWith(storagetest.MemOptions{Size: size}))
			})
		})
	}
}

func TestLimits(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	disk := storage.Limits{Minimum: 512, Preferred: 8 * kib, MaxData: mib, MaxTrim: 4 * mib, MaxZero: 8 * mib, MaxCache: 2 * mib}
	for _, c := range []struct {
		name string
		opt  policy.Options
		want storage.Limits // what is told
	}{
		{"nothing", policy.Options{}, disk},
		{
			"minimum",
			policy.Options{Limits: storage.Limits{Minimum: 16 * kib}},
			storage.Limits{Minimum: 16 * kib, Preferred: 16 * kib, MaxData: mib, MaxTrim: 4 * mib, MaxZero: 8 * mib, MaxCache: 2 * mib},
		},
		{
			"max_data",
			policy.Options{Limits: storage.Limits{MaxData: 3 * kib}},
			storage.Limits{Minimum: 512, Preferred: 2 * kib, MaxData: 3 * kib, MaxTrim: 4 * mib, MaxZero: 8 * mib, MaxCache: 2 * mib},
		},
		{
			"all",
			policy.Options{Mode: policy.Enforce, Limits: storage.Limits{
				Minimum: 4 * kib, Preferred: 4 * kib, MaxData: 64 * kib, MaxTrim: 128 * kib, MaxZero: 256 * kib, MaxCache: 64 * kib,
			}},
			storage.Limits{Minimum: 4 * kib, Preferred: 4 * kib, MaxData: 64 * kib, MaxTrim: 128 * kib, MaxZero: 256 * kib, MaxCache: 64 * kib},
		},
		{
			"told less",
			policy.Options{Mode: policy.Allow, Limits: storage.Limits{Minimum: 1, MaxData: 2 * mib}},
			storage.Limits{Minimum: 1, Preferred: 8 * kib, MaxData: 2 * mib, MaxTrim: 4 * mib, MaxZero: 8 * mib, MaxCache: 2 * mib},
		},
		{
			"told more",
			policy.Options{Mode: policy.Allow, Limits: storage.Limits{Minimum: 4 * kib, Preferred: 2 * mib}},
			storage.Limits{Minimum: 4 * kib, Preferred: 2 * mib, MaxData: 2 * mib, MaxTrim: 4 * mib, MaxZero: 8 * mib, MaxCache: 2 * mib},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := policy.New(t.Context(), below(disk), c.opt)
			if err != nil {
				t.Fatal(err)
			}
			top := storage.NewNode("top", f, storage.NodeOptions{})
			told, err := top.Advertised(t.Context())
			if diff := cmp.Diff(c.want, told); diff != "" || err != nil {
				t.Errorf("told: %v\n%s", err, diff)
			}
			want := c.want
			if c.opt.Mode == policy.Allow {
				want = disk
			}
			bind, err := top.Limits(t.Context())
			if diff := cmp.Diff(want, bind); diff != "" || err != nil {
				t.Errorf("binding: %v\n%s", err, diff)
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	disk := storage.Limits{Minimum: 512, Preferred: 8 << 10, MaxData: 1 << 20, MaxTrim: 4 << 20, MaxZero: 8 << 20, MaxCache: 1 << 20}
	for _, c := range []struct {
		mode   policy.Mode
		limits storage.Limits
		field  string
		says   string
	}{
		{"soft", storage.Limits{}, "mode", "enforce or allow"},
		{"", storage.Limits{Minimum: 3}, "minimum", "is 3, must be a power of two"},
		{"", storage.Limits{Minimum: -512}, "minimum", "is -512"},
		{"allow", storage.Limits{Minimum: 128 << 10}, "minimum", "65536"},
		{"", storage.Limits{Minimum: 256}, "minimum", "at least the node's own, 512"},
		{"", storage.Limits{Preferred: 256}, "preferred", "from 512"},
		{"", storage.Limits{Preferred: 2 << 20}, "preferred", "at most the node's max_data, 1048576"},
		{"", storage.Limits{Minimum: 4096, Preferred: 2048}, "preferred", "at least minimum, 4096"},
		{"", storage.Limits{MaxData: 2 << 20}, "max_data", "at most the node's own, 1048576"},
		{"allow", storage.Limits{MaxData: 65 << 20}, "max_data", "from 1 to 67108864"},
		{"", storage.Limits{MaxData: 1000}, "max_data", "a multiple of minimum, 512"},
		{"allow", storage.Limits{MaxData: 256}, "max_data", "at least 512"},
		{"", storage.Limits{MaxTrim: 1 << 30}, "max_trim", "at most the node's own, 4194304"},
		{"", storage.Limits{MaxTrim: 4096}, "max_trim", "at least 1048576"},
		{"", storage.Limits{MaxZero: 2<<20 + 1}, "max_zero", "a multiple of minimum, 512"},
		{"allow", storage.Limits{MaxZero: 4 << 30}, "max_zero", "from 1 to 4294967295"},
		{"", storage.Limits{MaxCache: -1}, "max_cache", "is -1"},
	} {
		_, err := policy.New(t.Context(), below(disk), policy.Options{Mode: c.mode, Limits: c.limits})
		var invalid *storage.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != c.field || !strings.Contains(invalid.Detail, c.says) {
			t.Errorf("%q %+v: %v, want %s: %s", c.mode, c.limits, err, c.field, c.says)
		}
	}
	small := storage.Limits{Minimum: 512, Preferred: 512, MaxData: 1024}
	_, err := policy.New(t.Context(), below(small), policy.Options{Limits: storage.Limits{Minimum: 4096}})
	if want := "minimum is 4096, must be at most the node's max_data, 1024"; err == nil || err.Error() != want {
		t.Errorf("a minimum above max_data: %v, want %s", err, want)
	}
}

// TestAnyLimits: what is accepted is consistent, and to enforce, kept by the node.
func TestAnyLimits(t *testing.T) {
	value := rapid.OneOf(
		rapid.Just(int64(0)), rapid.Just(int64(0)),
		rapid.Map(rapid.IntRange(0, 32), func(n int) int64 { return 1 << n }),
		rapid.Map(rapid.Int64Range(1, 1<<22), func(n int64) int64 { return n * 1024 }),
		rapid.Int64(),
	)
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) storage.Limits {
			l := storage.Limits{Minimum: value.Draw(t, what), Preferred: value.Draw(t, what), MaxData: value.Draw(t, what)}
			l.MaxTrim, l.MaxZero, l.MaxCache = value.Draw(t, what), value.Draw(t, what), value.Draw(t, what)
			return l
		}
		ctx := context.Background()
		next := below(drawNode(t))
		has, err := next.Limits(ctx)
		if err != nil {
			t.Fatal(err)
		}
		opt := policy.Options{Limits: draw("options"), Mode: rapid.SampledFrom([]policy.Mode{policy.Enforce, policy.Allow}).Draw(t, "mode")}
		f, err := policy.New(ctx, next, opt)
		if err != nil {
			if !errors.Is(err, storage.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		top := storage.NewNode("top", f, storage.NodeOptions{})
		told, err := top.Advertised(ctx)
		if err != nil {
			t.Fatal(err)
		}
		given := opt.Limits
		for which := storage.Minimum; which <= storage.MaxCache; which++ {
			if v := given.Of(which); v != 0 && told.Of(which) != v {
				t.Errorf("%v is %d, want %d", which, told.Of(which), v)
			}
		}
		bind, err := top.Limits(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if opt.Mode == policy.Allow && bind != has {
			t.Errorf("limits are %+v, not %+v", bind, has)
		}
		if bind.Minimum < has.Minimum || bind.MaxData > has.MaxData || bind.MaxTrim > has.MaxTrim || bind.MaxZero > has.MaxZero {
			t.Errorf("limits %+v are looser than %+v", bind, has)
		}
	})
}

// drawNode draws limits that a node may have.
func drawNode(t *rapid.T) storage.Limits {
	l := storage.Limits{Minimum: 1 << rapid.IntRange(0, 16).Draw(t, "minimum")}
	l.Preferred = min(max(512, l.Minimum)<<rapid.IntRange(0, 5).Draw(t, "preferred"), 2<<20)
	more := func(than int64, what string) int64 { return than + l.Minimum*rapid.Int64Range(0, 1000).Draw(t, what) }
	l.MaxData = more(l.Preferred, "max_data")
	l.MaxTrim, l.MaxZero, l.MaxCache = more(l.MaxData, "max_trim"), more(l.MaxData, "max_zero"), more(l.MaxData, "max_cache")
	return l
}

// TestEnforce: what breaks the policy does not reach the node below.
func TestEnforce(t *testing.T) {
	asked := 0
	file := storagetest.NewMemFileWith(storagetest.MemOptions{Size: 1 << 20, Hook: func(_ context.Context, op *storagetest.Op) error {
		if op.Kind != storagetest.OpLimit && op.Kind != storagetest.OpSize {
			asked++
		}
		return nil
	}})
	for mode, want := range map[policy.Mode]int{policy.Enforce: 0, policy.Allow: 4} {
		asked = 0
		f, err := policy.New(t.Context(), storage.NewNode("below", file, storage.NodeOptions{}),
			policy.Options{Mode: mode, Limits: storage.Limits{Minimum: 4096, MaxData: 8192}})
		if err != nil {
			t.Fatal(err)
		}
		top := storage.NewNode("top", f, storage.NodeOptions{})
		_, read := top.ReadAt(t.Context(), make([]byte, 512), 0)
		_, write := top.WriteAt(t.Context(), make([]byte, 12288), 0)
		for _, err := range []error{read, write, top.Zero(t.Context(), 512, 4096, false), top.Trim(t.Context(), 1, 1)} {
			if refused := errors.Is(err, storage.ErrMisaligned); refused != (mode == policy.Enforce) || !refused && err != nil {
				t.Errorf("%s: %v", mode, err)
			}
		}
		if asked != want {
			t.Errorf("%s: the node below was asked %d times, want %d", mode, asked, want)
		}
	}
}
