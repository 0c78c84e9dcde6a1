package api_test

import (
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/extentd/extentd/api"
	"github.com/extentd/extentd/auth"
	"github.com/extentd/extentd/state"
)

// onceCalls are the operations that honour Idempotency-Key, in an order in which
// they succeed: path, status, body, and one that is another's.
func onceCalls() [][4]string {
	return [][4]string{
		{"/v1/images", "201", `{"name":"k.qcow2","format":"qcow2","size":1048576}`, `{"name":"l.qcow2","format":"qcow2","size":1048576}`},
		{"/v1/images/{image}/allocations", "201", `{"length":65536}`, `{"length":131072}`},
		{"/v1/images/{image}/mappings", "200", `{"updates":[{"offset":0,"length":65536,"target":{"kind":"zero"}}]}`, `{"updates":[]}`},
		{"/v1/images/{image}/snapshots", "201", `{"name":"k"}`, `{"name":"l"}`},
		{"/v1/images/{image}/bitmaps", "201", `{"name":"k"}`, `{"name":"l"}`},
		{"/v1/images/{image}/bitmaps/{bitmap}/clear", "200", `{}`, `{ }`},
		{"/v1/images/{image}/bitmaps/{bitmap}/merge", "200", `{"from":["k"]}`, `{"from":["l"]}`},
		{"/v1/bitmaps", "204", `{"changes":[{"image":"k.qcow2","operation":"delete","bitmap":"k"}]}`, `{"changes":[{"image":"k.qcow2","operation":"clear","bitmap":"k"}]}`},
		{"/v1/tickets", "201", `{"image":"k.qcow2","verbs":["map"]}`, `{"image":"k.qcow2","verbs":["read"]}`},
	}
}

// contractKeys gets every answer to requests with an Idempotency-Key.
func contractKeys(c *contract) {
	db := state.New(c.t.TempDir())
	c.t.Cleanup(func() { _ = db.Close() })
	guard, err := auth.New(c.t.Context(), auth.Options{State: db})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = guard.Close() })
	each := func(status int, key string, body int) {
		for _, call := range onceCalls() {
			want := status
			if want == 0 {
				_, _ = fmt.Sscan(call[1], &want)
			}
			c.check(want, "POST", call[0], "", "image", "k.qcow2", "bitmap", "k", "body", call[body], "Content-Type", "application/json", "Idempotency-Key", key+call[0])
		}
	}
	c.with(start(c.t, api.Options{Guard: guard, State: db}, nil), func() {
		each(0, "key", 2)
		each(0, "key", 2)
		each(409, "key", 3)
		each(400, "a key ", 2)
		err := db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("idempotency-usage")).Put([]byte("all"), []byte(`{"keys":100000}`))
		})
		if err != nil {
			c.t.Fatal(err)
		}
		each(507, "another", 2)
	})
	c.with(start(c.t, api.Options{Guard: guard, State: state.New("")}, nil), func() { each(422, "key", 2) })
}
