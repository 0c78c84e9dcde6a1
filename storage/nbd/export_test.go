package nbd

// Target is what the options name: where to connect to, the export, and the name that
// the server's certificate must have.
func Target(opt Options) (network, address, export, hostname string, err error) {
	t, err := opt.complete()
	if t.tls != nil {
		hostname = t.tls.ServerName
	}
	return t.network, t.address, t.export, hostname, err
}
