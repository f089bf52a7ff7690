from pool.cli.app import main

main()
