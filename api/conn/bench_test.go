package conn_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/extentd/extentd/api/conn"
)

// BenchmarkSend is a read over a connection, from request to the last byte.
func BenchmarkSend(b *testing.B) {
	d, _ := image(b, 4<<20)
	for _, n := range []int64{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			srv := httptest.NewUnstartedServer(serve(d))
			srv.Listener = conn.Wrap(srv.Listener, conn.Options{Stall: time.Minute})
			srv.Config.ConnContext = conn.Context
			srv.Start()
			defer srv.Close()
			c, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			r := bufio.NewReaderSize(c, 1<<20)
			request := fmt.Sprintf("GET /?off=4096&n=%d HTTP/1.1\r\nHost: x\r\n\r\n", n)
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.WriteString(c, request); err != nil {
					b.Fatal(err)
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}
