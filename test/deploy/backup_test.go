package deploy

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// freePort is a port of the loopback interface where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// The backup jobs back up: twice, as a job does that is scheduled.
func TestBackup(t *testing.T) {
	for _, example := range []string{"backup-job", "backup-socket"} {
		t.Run(example, func(t *testing.T) {
			all := podsOf(t, manifests+"/examples/"+example)
			if len(all) != 1 {
				t.Fatalf("%d pods, want 1", len(all))
			}
			n := newNode(t, all[0])
			c := n.pod.server()
			if setting(c, "listen") == "" { // the default address, whose port may be taken here
				port := freePort(t)
				n.swap["127.0.0.1:7080"] = "127.0.0.1:" + port
				all[0].spec.InitContainers[0].Env = append(c.Env, env("EXTENTD_LISTEN", "127.0.0.1:7080"))
				n.pod = all[0]
			}
			image := n.path("images", "vm.qcow2")
			disk(t, image)
			before, err := os.ReadDir(n.path("images"))
			if err != nil {
				t.Fatal(err)
			}
			p := n.serve()
			n.probe(p)
			for range 2 {
				n.run(&n.pod.spec.Containers[0])
				qemuImg(t, "compare", "-f", "qcow2", "-F", "raw", image, n.path("backup", "vm.raw"))
			}
			p.stop(t)
			if after, err := os.ReadDir(n.path("images")); err != nil || len(after) != len(before) {
				t.Errorf("the volume that is mounted read-only holds %v, held %v", after, before)
			}
		})
	}
}
