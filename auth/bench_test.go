package auth_test

import (
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/extentd/extentd/auth"
)

// hot are the secrets that requests bear, once they are known.
func hot(t testing.TB) (*auth.Guard, map[string]string) {
	p := newProvider(t, public(rsaKey().Public(), "r"))
	opt := p.options(t, jobs+"\ntokens:\n"+token("b", "a-token-of-the-common-length-0123456789", "map, read", `"*"`))
	opt.State = kept(t, t.TempDir())
	g := start(t, opt)
	by := bearer(t, g, "a-token-of-the-common-length-0123456789")
	return g, map[string]string{
		"token":  "a-token-of-the-common-length-0123456789",
		"ticket": mint(t, g, by, "vm", auth.Read, time.Hour).Secret,
		"jwt":    sign(t, jose.RS256, rsaKey(), "r", p.claims(map[string]any{"x": make([]byte, 600)})),
	}
}

// A request that bears what is known allocates nothing for it, and asks nobody.
func TestKnownSecretsAllocateNothing(t *testing.T) {
	g, secrets := hot(t)
	if _, err := g.Bearer(t.Context(), here, "wrong"); err == nil { // so that there is an address to look for
		t.Error("accepted")
	}
	for name, secret := range secrets {
		bearer(t, g, secret)
		if n := testing.AllocsPerRun(100, func() { bearer(t, g, secret) }); n > 0 {
			t.Errorf("%s: %.0f allocations", name, n)
		}
	}
}

func BenchmarkBearer(b *testing.B) {
	g, secrets := hot(b)
	for _, name := range []string{"token", "ticket", "jwt"} {
		secret := secrets[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			for b.Loop() {
				if _, err := g.Bearer(ctx, here, secret); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGrants(b *testing.B) {
	g, secrets := hot(b)
	c := bearer(b, g, secrets["token"])
	b.ReportAllocs()
	for b.Loop() {
		if !c.May(auth.Read, "vm.qcow2") {
			b.Fatal("refused")
		}
	}
}
